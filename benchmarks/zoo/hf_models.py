"""Model classes of transformers with tiny configs and random weights: tensors in, one tensor out.

Sizes: width 32 or 64, two layers, four heads, two key-value heads where the class groups its queries, 16 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TOKENS, VOCAB = 2, 16, 99


@dataclass(frozen=True)
class Entry:
    """One class of transformers: its config, what goes in, and which of its outputs is kept."""

    model: str
    config: str
    kind: str = "tokens"
    output: str = "logits"
    settings: dict[str, Any] = field(default_factory=dict)


ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
DECODER = {**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**DECODER, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2], "image_size": 32}
BART = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SPEECH = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "apply_spec_augment": False,
}
STATES = "last_hidden_state"

ENTRIES: dict[str, Entry] = {
    # encoders
    "bert": Entry("BertForSequenceClassification", "BertConfig", settings=ENCODER),
    "roberta": Entry("RobertaForSequenceClassification", "RobertaConfig", settings=ENCODER),
    "xlm_roberta": Entry("XLMRobertaForTokenClassification", "XLMRobertaConfig", settings=ENCODER),
    "camembert": Entry("CamembertForMaskedLM", "CamembertConfig", settings=ENCODER),
    "distilbert": Entry(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        settings={"vocab_size": VOCAB, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "albert": Entry("AlbertForSequenceClassification", "AlbertConfig", settings={**ENCODER, "embedding_size": 32}),
    "electra": Entry("ElectraForSequenceClassification", "ElectraConfig", settings={**ENCODER, "embedding_size": 32}),
    "deberta": Entry(
        "DebertaForSequenceClassification",
        "DebertaConfig",
        settings={**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "deberta_v2": Entry(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        settings={**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "mpnet": Entry("MPNetForSequenceClassification", "MPNetConfig", settings=ENCODER),
    "modernbert": Entry(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        settings={**DECODER, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2},
    ),
    "mobilebert": Entry(
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        settings={
            **ENCODER,
            "embedding_size": 32,
            "true_hidden_size": 32,
            "intra_bottleneck_size": 32,
            "num_feedforward_networks": 2,
        },
    ),
    "squeezebert": Entry(
        "SqueezeBertForSequenceClassification", "SqueezeBertConfig", settings={**ENCODER, "embedding_size": 64}
    ),
    "funnel": Entry(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        settings={"vocab_size": VOCAB, "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1]},
    ),
    "fnet": Entry(
        "FNetForSequenceClassification",
        "FNetConfig",
        settings={key: value for key, value in ENCODER.items() if key != "num_attention_heads"},
    ),
    "convbert": Entry(
        "ConvBertForSequenceClassification", "ConvBertConfig", settings={**ENCODER, "embedding_size": 64}
    ),
    "xlm": Entry(
        "XLMForSequenceClassification",
        "XLMConfig",
        settings={"vocab_size": VOCAB, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "roformer": Entry("RoFormerForSequenceClassification", "RoFormerConfig", settings=ENCODER),
    "megatron_bert": Entry("MegatronBertForSequenceClassification", "MegatronBertConfig", settings=ENCODER),
    "esm": Entry("EsmForSequenceClassification", "EsmConfig", settings={**ENCODER, "mask_token_id": 4}),
    "layoutlm": Entry("LayoutLMForSequenceClassification", "LayoutLMConfig", settings=ENCODER),
    # decoders
    "llama": Entry("LlamaForCausalLM", "LlamaConfig", settings=GROUPED),
    "mistral": Entry("MistralForCausalLM", "MistralConfig", settings=GROUPED),
    "qwen2": Entry("Qwen2ForCausalLM", "Qwen2Config", settings=GROUPED),
    "qwen3": Entry("Qwen3ForCausalLM", "Qwen3Config", settings={**GROUPED, "head_dim": 16}),
    "gemma": Entry("GemmaForCausalLM", "GemmaConfig", settings={**GROUPED, "head_dim": 16}),
    "gemma2": Entry("Gemma2ForCausalLM", "Gemma2Config", settings={**GROUPED, "head_dim": 16}),
    "gemma3": Entry("Gemma3ForCausalLM", "Gemma3TextConfig", settings={**GROUPED, "head_dim": 16}),
    "phi": Entry("PhiForCausalLM", "PhiConfig", settings=GROUPED),
    "phi3": Entry("Phi3ForCausalLM", "Phi3Config", settings=GROUPED),
    "gpt2": Entry(
        "GPT2LMHeadModel",
        "GPT2Config",
        settings={"vocab_size": VOCAB, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "gpt_neo": Entry(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        settings={
            "vocab_size": VOCAB,
            "max_position_embeddings": 64,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": Entry("GPTNeoXForCausalLM", "GPTNeoXConfig", settings=DECODER),
    "gptj": Entry(
        "GPTJForCausalLM",
        "GPTJConfig",
        settings={"vocab_size": VOCAB, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    ),
    "gpt_bigcode": Entry(
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        settings={"vocab_size": VOCAB, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "codegen": Entry(
        "CodeGenForCausalLM",
        "CodeGenConfig",
        settings={
            "vocab_size": VOCAB,
            "n_positions": 64,
            "n_ctx": 64,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "rotary_dim": 8,
        },
    ),
    "opt": Entry("OPTForCausalLM", "OPTConfig", settings={**DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": Entry(
        "BloomForCausalLM", "BloomConfig", settings={"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 4}
    ),
    "falcon": Entry(
        "FalconForCausalLM",
        "FalconConfig",
        settings={**DECODER, "multi_query": True, "new_decoder_architecture": False},
    ),
    "falcon_gqa": Entry(
        "FalconForCausalLM", "FalconConfig", settings={**DECODER, "num_kv_heads": 2, "new_decoder_architecture": True}
    ),
    "mpt": Entry(
        "MptForCausalLM",
        "MptConfig",
        settings={
            "vocab_size": VOCAB,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
    ),
    "starcoder2": Entry("Starcoder2ForCausalLM", "Starcoder2Config", settings=GROUPED),
    "olmo": Entry("OlmoForCausalLM", "OlmoConfig", settings=GROUPED),
    "olmo2": Entry("Olmo2ForCausalLM", "Olmo2Config", settings=GROUPED),
    "cohere": Entry("CohereForCausalLM", "CohereConfig", settings=GROUPED),
    "stablelm": Entry("StableLmForCausalLM", "StableLmConfig", settings=GROUPED),
    "granite": Entry("GraniteForCausalLM", "GraniteConfig", settings=GROUPED),
    "smollm3": Entry("SmolLM3ForCausalLM", "SmolLM3Config", settings=GROUPED),
    "glm": Entry("GlmForCausalLM", "GlmConfig", settings={**GROUPED, "head_dim": 16}),
    "nemotron": Entry("NemotronForCausalLM", "NemotronConfig", settings={**GROUPED, "head_dim": 16}),
    "mamba": Entry(
        "MambaForCausalLM",
        "MambaConfig",
        settings={"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "use_cache": False},
    ),
    "mamba2": Entry(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        settings={
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "rwkv": Entry(
        "RwkvForCausalLM",
        "RwkvConfig",
        settings={"vocab_size": VOCAB, "context_length": 64, "hidden_size": 64, "num_hidden_layers": 2},
    ),
    # mixture of experts
    "mixtral": Entry("MixtralForCausalLM", "MixtralConfig", settings={**GROUPED, **EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": Entry(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        settings={
            **GROUPED,
            **EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": Entry(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        settings={**GROUPED, **EXPERTS, "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32},
    ),
    "olmoe": Entry("OlmoeForCausalLM", "OlmoeConfig", settings={**GROUPED, **EXPERTS, "num_experts": 4}),
    "granitemoe": Entry(
        "GraniteMoeForCausalLM", "GraniteMoeConfig", settings={**GROUPED, **EXPERTS, "num_local_experts": 4}
    ),
    "phimoe": Entry("PhimoeForCausalLM", "PhimoeConfig", settings={**GROUPED, **EXPERTS, "num_local_experts": 4}),
    "deepseek_v3": Entry(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        settings={
            **DECODER,
            **EXPERTS,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
    # encoder-decoders
    "t5": Entry("T5ForConditionalGeneration", "T5Config", "pair", settings=T5),
    "mt5": Entry("MT5ForConditionalGeneration", "MT5Config", "pair", settings=T5),
    "t5_encoder": Entry("T5EncoderModel", "T5Config", output=STATES, settings=T5),
    "umt5": Entry("UMT5ForConditionalGeneration", "UMT5Config", "pair", settings=T5),
    "bart": Entry("BartForConditionalGeneration", "BartConfig", "pair", settings=BART),
    "mbart": Entry("MBartForConditionalGeneration", "MBartConfig", "pair", settings=BART),
    "pegasus": Entry("PegasusForConditionalGeneration", "PegasusConfig", "pair", settings=BART),
    "marian": Entry("MarianMTModel", "MarianConfig", "pair", settings={**BART, "decoder_vocab_size": VOCAB}),
    "blenderbot": Entry("BlenderbotForConditionalGeneration", "BlenderbotConfig", "pair", settings=BART),
    "m2m_100": Entry("M2M100ForConditionalGeneration", "M2M100Config", "pair", settings=BART),
    "led": Entry(
        "LEDForConditionalGeneration",
        "LEDConfig",
        "pair",
        settings={
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
            "attention_window": 8,
        },
    ),
    # vision
    "vit": Entry("ViTForImageClassification", "ViTConfig", "image", settings=VISION),
    "deit": Entry("DeiTForImageClassification", "DeiTConfig", "image", settings=VISION),
    "beit": Entry("BeitForImageClassification", "BeitConfig", "image", settings=VISION),
    "data2vec_vision": Entry("Data2VecVisionForImageClassification", "Data2VecVisionConfig", "image", settings=VISION),
    "dinov2": Entry("Dinov2ForImageClassification", "Dinov2Config", "image", settings={**VISION, "mlp_ratio": 2}),
    "dinov3_vit": Entry("DINOv3ViTModel", "DINOv3ViTConfig", "image", STATES, VISION),
    # The noise decides the order of the patches; without it the model draws some at each call.
    "vit_mae": Entry("ViTMAEModel", "ViTMAEConfig", "image_and_noise", STATES, {**VISION, "mask_ratio": 0.0}),
    "yolos": Entry(
        "YolosForObjectDetection",
        "YolosConfig",
        "image",
        settings={**VISION, "image_size": [32, 32], "num_detection_tokens": 5},
    ),
    "swin": Entry(
        "SwinForImageClassification",
        "SwinConfig",
        "image",
        settings=SWIN,
    ),
    "swinv2": Entry(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        "image",
        settings=SWIN,
    ),
    "convnext": Entry(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        "image",
        settings=CONVNEXT,
    ),
    "convnextv2": Entry(
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        "image",
        settings=CONVNEXT,
    ),
    "resnet": Entry(
        "ResNetForImageClassification",
        "ResNetConfig",
        "image",
        settings={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    "regnet": Entry(
        "RegNetForImageClassification",
        "RegNetConfig",
        "image",
        settings={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    ),
    "segformer": Entry(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        "image",
        settings={
            "hidden_sizes": [16, 32],
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
    ),
    "mobilevit": Entry(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        "image",
        settings={"image_size": 64, "hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [16, 16, 24, 24, 32, 32, 64]},
    ),
    "mobilenet_v2": Entry(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", "image", settings={"depth_multiplier": 0.35}
    ),
    "pvt": Entry(
        "PvtForImageClassification",
        "PvtConfig",
        "image",
        settings={
            "image_size": 64,
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
        },
    ),
    "poolformer": Entry(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        "image",
        settings={"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
    ),
    "levit": Entry(
        "LevitForImageClassification",
        "LevitConfig",
        "image",
        settings={
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    "dpt": Entry(
        "DPTForDepthEstimation",
        "DPTConfig",
        "image",
        "predicted_depth",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 32, 32],
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
    ),
    "clip_vision": Entry(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", "image", "image_embeds", {**VISION, "projection_dim": 32}
    ),
    "clip_text": Entry(
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        "tokens",
        "text_embeds",
        {**ENCODER, "projection_dim": 32, "eos_token_id": 2},
    ),
    "siglip_vision": Entry("SiglipVisionModel", "SiglipVisionConfig", "image", "pooler_output", VISION),
    # audio
    "wav2vec2": Entry("Wav2Vec2ForCTC", "Wav2Vec2Config", "wave", settings=SPEECH),
    "hubert": Entry("HubertForCTC", "HubertConfig", "wave", settings=SPEECH),
    "wavlm": Entry(
        "WavLMForCTC", "WavLMConfig", "wave", settings={**SPEECH, "num_buckets": 16, "max_bucket_distance": 32}
    ),
    "sew": Entry("SEWForCTC", "SEWConfig", "wave", settings={**SPEECH, "squeeze_factor": 2}),
    "unispeech": Entry("UniSpeechForCTC", "UniSpeechConfig", "wave", settings=SPEECH),
    "whisper": Entry(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        "spectrogram_and_tokens",
        settings={
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 64,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "ast": Entry(
        "ASTForAudioClassification",
        "ASTConfig",
        "spectrogram",
        settings={
            **{key: value for key, value in VISION.items() if key != "image_size"},
            "max_length": 64,
            "num_mel_bins": 16,
            "time_stride": 8,
            "frequency_stride": 8,
        },
    ),
    "speech_to_text": Entry(
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        "features_and_tokens",
        settings={
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            "max_source_positions": 64,
            "max_target_positions": 64,
            "input_feat_per_channel": 16,
            "conv_channels": 32,
            "num_conv_layers": 2,
            "conv_kernel_sizes": (5, 5),
        },
    ),
    # time series, tracking and others
    "patchtst": Entry(
        "PatchTSTForRegression",
        "PatchTSTConfig",
        "series",
        "regression_outputs",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 64,
            "ffn_dim": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_targets": 2,
            "do_mask_input": False,
        },
    ),
    "perceiver": Entry(
        "PerceiverForSequenceClassification",
        "PerceiverConfig",
        settings={
            "vocab_size": VOCAB,
            "d_model": 64,
            "d_latents": 64,
            "num_latents": 8,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "videomae": Entry(
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        "video",
        settings={**VISION, "num_frames": 4, "tubelet_size": 2},
    ),
}

KEYS = {
    "tokens": ("input_ids",),
    "pair": ("input_ids", "decoder_input_ids"),
    "image": ("pixel_values",),
    "image_and_noise": ("pixel_values", "noise"),
    "video": ("pixel_values",),
    "wave": ("input_values",),
    "spectrogram": ("input_values",),
    "spectrogram_and_tokens": ("input_features", "decoder_input_ids"),
    "features_and_tokens": ("input_features", "decoder_input_ids"),
    "series": ("past_values",),
}


class Wrapped(nn.Module):
    """Calls a model of transformers with tensors by position, and keeps one of its outputs."""

    def __init__(self, inner: nn.Module, keys: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.inner, self.keys, self.output = inner, keys, output

    def forward(self, *tensors: Tensor) -> Tensor:
        """One tensor [B, ...]."""
        out: Tensor = getattr(self.inner(**dict(zip(self.keys, tensors, strict=True))), self.output)
        return out


def names() -> list[str]:
    """Every entry's name."""
    return list(ENTRIES)


def warm_up() -> None:
    """Import what `make` needs."""
    import transformers

    for entry in ENTRIES.values():
        getattr(transformers, entry.model)


def make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights, in eval mode, and inputs that fit it."""
    import transformers

    entry = ENTRIES[name]
    config = getattr(transformers, entry.config)(**entry.settings)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    torch.manual_seed(0)
    # The default for mixtures of experts is an operation of transformers' own, which neither ATen nor ONNX has.
    config._experts_implementation = "batched_mm"
    inner = getattr(transformers, entry.model)(config)
    return Wrapped(inner, KEYS[entry.kind], entry.output).eval(), inputs(entry, config)


def inputs(entry: Entry, config: object) -> tuple[Tensor, ...]:
    """Random inputs for the kind of an entry."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (BATCH, TOKENS), generator=generator)
    if entry.kind == "tokens":
        return (tokens,)
    if entry.kind == "pair":
        return tokens, torch.randint(3, VOCAB, (BATCH, TOKENS // 2), generator=generator)
    size = getattr(config, "image_size", 64)
    side = size if isinstance(size, int) else 64 if size is None else size[0]
    shape = {
        "image": (3, side, side),
        "image_and_noise": (3, side, side),
        "video": (4, 3, side, side),
        "wave": (1600,),
        "spectrogram": (64, 16),
        "spectrogram_and_tokens": (16, 64),
        "features_and_tokens": (64, 16),
        "series": (32, 3),
    }[entry.kind]
    first = torch.randn((BATCH, *shape), generator=generator)
    if entry.kind == "image_and_noise":
        return first, torch.rand((BATCH, (side // VISION["patch_size"]) ** 2), generator=generator)
    return (first, tokens[:, : TOKENS // 2]) if entry.kind.endswith("_and_tokens") else (first,)
