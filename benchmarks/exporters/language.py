"""Decoders of transformers with keys and values of the past as inputs and outputs, with random weights.

`DECODERS` maps a name to a builder of a `Case`, as `MODULES` of `modules.py` does: GPT-2, Llama, Qwen3, decoders of T5
and Whisper, whose keys and values of the encoder come in, too, and more that differ in what surrounds attention
(`_ALIKE`). Weights are large enough for tokens to differ. Needs transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from cases import Case, Input
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

VOCABULARY = 101
SIZES = [{"B": 2, "T": 5, "P": 3}, {"B": 1, "T": 1, "P": 5}, {"B": 1, "T": 7, "P": 0}, {"B": 3, "T": 1, "P": 12}]


class Causal(nn.Module):
    """Ids, mask, positions and caches to scores and grown caches."""

    leading = 3

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> list[Tensor]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return [out.logits, *(t for layer in out.past_key_values for t in layer[:2])]


class Unnumbered(Causal):
    """The same of a model that takes no positions."""

    leading = 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> list[Tensor]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return [out.logits, *(t for layer in out.past_key_values for t in layer[:2])]


class CrossDecoder(nn.Module):
    """A decoder over what an encoder's states gave: its keys and values come in and are only read."""

    leading = 2

    def __init__(self, model: nn.Module, t5: bool) -> None:
        super().__init__()
        self.model, self.t5 = model, t5

    def forward(self, input_ids: Tensor, hidden: Tensor, *past: Tensor) -> list[Tensor]:
        own = DynamicCache(list(zip(past[::4], past[1::4], strict=True)))
        cross = DynamicCache(list(zip(past[2::4], past[3::4], strict=True)))
        cache = EncoderDecoderCache(own, cross)
        decoder = self.model.decoder if self.t5 else self.model.model.decoder
        out = decoder(input_ids=input_ids, encoder_hidden_states=hidden, past_key_values=cache, use_cache=True)
        states = out.last_hidden_state
        if self.t5:
            logits = self.model.lm_head(states * self.model.model_dim**-0.5)
        else:
            logits = self.model.proj_out(states)
        grown = out.past_key_values.self_attention_cache
        return [logits, *(t for layer in grown for t in layer[:2])]


def causal(model: nn.Module) -> Case:
    """Ids, mask, positions where the model takes them, and as many caches of such forms as a run gives."""
    model.eval()
    with torch.no_grad():
        run = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    shapes = {f"past_key_values.{i}.{part}": cache.shape
              for i, layer in enumerate(run.past_key_values)
              for part, cache in zip(("key", "value"), layer, strict=False)}  # fmt: skip
    numbered = "position_ids" in inspect.signature(model.forward).parameters
    inputs = [
        Input("input_ids", ["B", "T"], f"ids:{VOCABULARY}"), Input("attention_mask", ["B", "P+T"], "ones"),
        *([Input("position_ids", ["B", "T"], "positions")] if numbered else []),
        *(Input(name, ["B", shape[1], "P", shape[3]]) for name, shape in shapes.items()),
    ]  # fmt: skip
    outputs = ["logits", *(n.replace("past_key_values", "present") for n in shapes)]
    return Case((Causal if numbered else Unnumbered)(model), inputs, outputs, SIZES)


def seq2seq(model: nn.Module, t5: bool, layers: int, heads: int, width: int) -> Case:
    inputs = [
        Input("input_ids", ["B", "T"], f"ids:{VOCABULARY}"),
        Input("encoder_hidden_states", ["B", "S", heads * width]),
    ]
    for i in range(layers):
        inputs += [Input(f"past_key_values.{i}.decoder.{part}", ["B", heads, "P", width]) for part in ("key", "value")]
        inputs += [Input(f"past_key_values.{i}.encoder.{part}", ["B", heads, "S", width]) for part in ("key", "value")]
    outputs = ["logits"] + [f"present.{i}.decoder.{part}" for i in range(layers) for part in ("key", "value")]
    return Case(CrossDecoder(model.eval(), t5), inputs, outputs, [s | {"S": 8 + i} for i, s in enumerate(SIZES)])


def gpt2(wide: float) -> Case:
    w = int(32 * wide)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=w, n_layer=2, n_head=4)
    return causal(GPT2LMHeadModel(config))


def llama(wide: float) -> Case:
    w = int(32 * wide)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=w, intermediate_size=2 * w, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return causal(LlamaForCausalLM(config))


def qwen3(wide: float) -> Case:
    w = int(32 * wide)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=w, intermediate_size=2 * w, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=w // 4, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return causal(Qwen3ForCausalLM(config))


def t5(wide: float) -> Case:
    w = int(32 * wide)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=w, d_kv=w // 4, d_ff=2 * w, num_layers=2, num_heads=4, is_decoder=False,
    )  # fmt: skip
    return seq2seq(T5ForConditionalGeneration(config), True, 2, 4, w // 4)


def whisper_decoder(wide: float) -> Case:
    w = int(32 * wide)
    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=w, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=2 * w, decoder_ffn_dim=2 * w, max_target_positions=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return seq2seq(WhisperForConditionalGeneration(config), False, 2, 4, w // 4)


_WIDTH, _HEADS, _LAYERS = 32, 4, 2
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS, "num_key_value_heads": 2, "head_dim": _WIDTH // _HEADS, "initializer_range": 0.3,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MIX = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": _WIDTH}
_ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    # softcap of scores and logits, a window in every other layer, norms on both sides
    "gemma2": ("gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    # norms of queries and keys, windows with a rotary base of their own
    "gemma3": ("gemma3_text", {"sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2}),
    "phi3": ("phi3", {}),  # queries, keys and values packed, gate and up packed
    "phi3_window": ("phi3", {"sliding_window": 4}),
    "olmo2": ("olmo2", {}),  # norms behind, of queries and keys over all heads
    "falcon_alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "falcon": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"d_model": _WIDTH, "n_heads": _HEADS, "n_layers": _LAYERS, "max_seq_len": 128}),
    "neox": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": True}),
    "bloom": ("bloom", {"n_head": _HEADS, "n_layer": _LAYERS}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "mixtral": ("mixtral", _MIX),
    "qwen3_moe": ("qwen3_moe", {**_MIX, "decoder_sparse_step": 1}),
    "granite": ("granite", {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "cohere": ("cohere", {"logit_scale": 0.5}),  # interleaved rotary, parallel residual
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),  # a layer without rotary
    "gpt_oss": ("gpt_oss", {**_MIX, "sliding_window": 4}),  # sinks
    "opt": ("opt", {"ffn_dim": 2 * _WIDTH, "word_embed_proj_dim": _WIDTH}),
    "gptj": ("gptj", {"n_embd": _WIDTH, "n_head": _HEADS, "n_layer": _LAYERS, "rotary_dim": 4, "n_positions": 128}),
    "glm4": ("glm4", {"partial_rotary_factor": 0.5}),  # interleaved partial rotary, four norms
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5}),
    "exaone4": ("exaone4", {"sliding_window": 4, "sliding_window_pattern": "LG"}),
    "llama3_scaled": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
}  # fmt: skip
"""Name -> kind of model, and what its configuration has besides `_COMMON`."""


def alike(name: str) -> Callable[[float], Case]:
    """Builder of a decoder of `_ALIKE`; its width is that of `_COMMON`."""

    def build(wide: float) -> Case:
        kind, own = _ALIKE[name]
        known = set(inspect.signature(CONFIG_MAPPING[kind]).parameters)
        config = AutoConfig.for_model(kind, **{k: v for k, v in _COMMON.items() if k in known}, **own)
        return causal(_made(config))

    return build


def deepseek(wide: float) -> Case:
    """Keys and values made from a narrow latent, which is what the cache holds, beside the rotary part of the keys."""
    config = AutoConfig.for_model(
        "deepseek_v3", **{**_COMMON, "num_key_value_heads": _HEADS}, **_MIX, n_routed_experts=4, n_group=1,
        topk_group=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=2,
    )  # fmt: skip
    return causal(_made(config))


def _made(config: Any) -> nn.Module:
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"  # what experts are sorted by otherwise has no operator of ONNX
    return AutoModelForCausalLM.from_config(config)


DECODERS: dict[str, Callable[[float], Case]] = {
    "gpt2": gpt2, "llama": llama, "qwen3": qwen3, "t5": t5, "whisper_decoder": whisper_decoder,
    "deepseek": deepseek, **{name: alike(name) for name in _ALIKE},
}  # fmt: skip
