"""Every architecture family (module) of timm 1.0.31: its smallest member, two where members differ much in kind.

Weights are random, the input is the smallest that the member takes, ten classes. Where a member repeats one block many
times, an argument of its own class makes it shallower; the few whose smallest member is huge are narrowed, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.stand_in import import_timm

BATCH, NUM_CLASSES = 2, 10


@dataclass(frozen=True)
class Entry:
    """Image side, and arguments of the model; `resize` tells the model of the side when it is built."""

    side: int = 64
    resize: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def fixed(side: int = 64, **settings: Any) -> Entry:
    """A member whose weights depend on the image side."""
    return Entry(side, resize=True, settings=settings)


def own(side: int = 224, **settings: Any) -> Entry:
    """A member that is kept at one side."""
    return Entry(side, settings=settings)


FREE = Entry()
SHALLOW = {"layers": (1, 1, 1, 1)}

# In the order of timm's modules; the comment names the module where the member does not.
ENTRIES: dict[str, Entry] = {
    "vit_tiny_patch16_224": fixed(depth=3),
    "vit_wee_patch16_reg1_gap_256": fixed(depth=3),
    "aimv2_1b_patch14_224": fixed(56, embed_dim=64, depth=2, num_heads=4),
    "vit_small_patch14_reg4_dinov2": fixed(56, depth=3),
    "test_byobnet": FREE,
    "mobileone_s0": FREE,  # byobnet
    "repvgg_a0": FREE,  # byobnet
    "gcresnext26ts": FREE,  # byobnet
    "beit_base_patch16_224": fixed(depth=2),
    "botnet26t_256": fixed(128),  # byoanet
    "halonet26t": Entry(256),  # byoanet
    "lambda_resnet26t": Entry(128),  # byoanet
    "poolformer_s12": FREE,  # metaformer
    "caformer_s18": FREE,  # metaformer
    "cait_xxs24_224": fixed(depth=3),
    "coat_lite_tiny": fixed(),
    "test_coatnet": Entry(160),  # maxxvit
    "test_maxvit": Entry(160),  # maxxvit
    "convit_tiny": fixed(depth=3, local_up_to_layer=2),
    "convmixer_768_32": FREE,
    "test_convnext": FREE,
    "convnext_atto": FREE,
    "convnextv2_atto": FREE,
    "cpubone_nano": FREE,
    "crossvit_tiny_240": own(240, depth=((1, 1, 0), (1, 1, 0))),
    "cspresnet50": FREE,  # cspnet
    "darknet17": FREE,  # cspnet
    "csatv2": own(512),
    "cspnext_tiny": FREE,
    "davit_tiny": Entry(settings={"depths": (1, 1, 1, 1)}),
    "deepseek_vit_412m": fixed(56, embed_dim=64, depth=2, num_heads=4),
    "deit_tiny_distilled_patch16_224": fixed(depth=3),
    "deit3_small_patch16_224": fixed(depth=3),
    "densenet121": Entry(settings={"block_config": (2, 2, 2, 2)}),
    "dla46x_c": FREE,
    "test_nfnet": FREE,
    "nf_regnet_b0": FREE,  # nfnet
    "dpn48b": FREE,
    "ese_vovnet19b_slim_dw": FREE,  # vovnet
    "resnet18": FREE,
    "resnext50_32x4d": Entry(settings=SHALLOW),  # resnet
    "ecaresnet26t": Entry(settings=SHALLOW),  # resnet
    "resnetblur50": Entry(settings=SHALLOW),  # resnet
    "edgenext_xx_small": FREE,
    "efficientformer_l1": own(224),
    "efficientformerv2_s0": own(224),
    "efficientnet_b0": FREE,
    "test_efficientnet_gn": FREE,  # efficientnet
    "test_efficientnet_evos": FREE,  # efficientnet
    "mobilenetv2_035": FREE,  # efficientnet
    "mixnet_s": FREE,  # efficientnet
    "efficientvim_m1": FREE,
    "efficientvit_b0": FREE,  # efficientvit_mit
    "efficientvit_m0": own(224),  # efficientvit_msra
    "eva02_tiny_patch14_224": fixed(56, depth=3),
    "vit_small_patch16_dinov3": fixed(depth=3),  # eva
    "fasternet_t0": FREE,
    "fastvit_t8": FREE,
    "mobilenetv3_small_050": FREE,
    "mobilenetv4_conv_small_035": FREE,  # mobilenetv3
    "mobilenetv4_hybrid_medium": FREE,  # mobilenetv3
    "focalnet_tiny_srf": FREE,
    "gcvit_xxtiny": own(224),
    "gemma4_vit_167m": fixed(96, embed_dim=64, depth=2, num_heads=4),
    "ghostnet_050": FREE,
    "ghostnetv3_050": FREE,
    "mixer_s32_224": fixed(),  # mlp_mixer
    "gmlp_ti16_224": fixed(),  # mlp_mixer
    "resmlp_12_224": fixed(),  # mlp_mixer
    "hardcorenas_a": FREE,
    "hgnetv2_b0": FREE,
    "hiera_tiny_224": own(224),
    "sam2_hiera_tiny": own(224),  # hieradet_sam2
    "hrnet_w18_small": FREE,
    "iformer_t": FREE,
    "inception_next_atto": FREE,
    "inception_resnet_v2": Entry(96),
    "inception_v3": Entry(96),
    "inception_v4": Entry(96),
    "lcnetv2_small": FREE,
    "legacy_seresnet18": FREE,  # senet
    "legacy_xception": FREE,
    "levit_128s": own(224),
    "levit_conv_128s": own(224),
    "lowformer_b0": FREE,
    "mambaout_femto": FREE,
    "mobilenetv5_base": Entry(64),
    "mobilevit_xxs": FREE,
    "mobilevitv2_050": FREE,
    "mvitv2_tiny": fixed(),
    "naflexvit_base_patch16_gap": Entry(64, settings={"depth": 2}),
    "nasnetalarge": Entry(96),
    "nest_tiny": own(224),
    "nextvit_small": FREE,
    "pit_ti_224": own(224),
    "pnasnet5large": Entry(96),
    "pvt_v2_b0": FREE,
    "qwen3_vit_88m": Entry(64, settings={"depth": 2}),
    "rdnet_tiny": FREE,
    "regnetx_002": FREE,
    "regnety_002": FREE,
    "regnetz_005": FREE,
    "repghostnet_050": FREE,
    "repvit_m0_9": FREE,
    "res2net50_14w_8s": FREE,
    "resnest14d": FREE,
    "resnetv2_18": FREE,
    "resnetv2_50x1_bit": FREE,
    "rexnet_100": FREE,
    "samvit_base_patch16_224": fixed(64, depth=2),  # vision_transformer_sam
    "selecsls42": FREE,
    "sequencer2d_s": fixed(layers=(1, 1, 1, 1)),
    "shvit_s1": FREE,
    "skresnet18": FREE,
    "starnet_s050": FREE,
    "swiftformer_xs": Entry(224),
    "swin_tiny_patch4_window7_224": own(224, depths=(2, 2, 2, 2)),
    "swinv2_tiny_window8_256": own(256, depths=(2, 2, 2, 2)),
    "swinv2_cr_tiny_224": own(224, depths=(2, 2, 2, 2)),
    "vit_relpos_small_patch16_224": fixed(depth=3),
    "tiny_vit_5m_224": own(224),
    "tnt_s_patch16_224": fixed(depth=3),
    "tresnet_m": Entry(settings=SHALLOW),
    "twins_pcpvt_small": own(224, depths=(1, 1, 1, 1)),
    "twins_svt_small": own(224, depths=(1, 1, 2, 1)),
    "vgg11_bn": FREE,
    "visformer_tiny": own(224),
    "vit_tiny_r_s16_p8_224": own(224, depth=3),  # vision_transformer_hybrid
    "vitamin_small_224": own(224),
    "volo_d1_224": own(224),
    "xception41": FREE,
    "xcit_nano_12_p16_224": own(224, depth=3),
}


def names() -> list[str]:
    """Every entry's name."""
    return list(ENTRIES)


def warm_up() -> None:
    """Import what `make` needs."""
    import_timm()


def make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights, in eval mode, and inputs that fit it."""
    entry = ENTRIES[name]
    torch.manual_seed(0)
    size = {"img_size": entry.side} if entry.resize else {}
    module = import_timm().create_model(name, num_classes=NUM_CLASSES, **size, **entry.settings)
    images = torch.randn((BATCH, 3, entry.side, entry.side), generator=torch.Generator().manual_seed(0))
    return module.eval(), (images,)
