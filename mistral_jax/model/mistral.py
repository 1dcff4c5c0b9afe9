"""The decoder of the dense Mistral and Llama families, as Flax NNX modules. Names and shapes of its weights are
declared in `conversion.weights.decoder_weights`.

One stack of layers runs in two ways, which differ in where attention reads its keys:
- `Mistral.__call__` reads and writes a `KVCache` (serving: prefill chunks and decode steps);
- `Mistral.hidden_states` processes a whole text at once, without a cache (training, scoring, and the reference of the
  tests).

Axis letters: B rows, T tokens, N query heads, K kv heads, H head dim, D model dim, F ffn dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from conversion.weights.decoder_weights import weight_named
from mistral_jax.model import norm_kernel
from mistral_jax.model.attends import Attend, CausalAttend, cached_attends
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import CacheView, KVCache
from mistral_jax.model.layers import Embedding, Linear, RMSNorm
from mistral_jax.model.low_rank import LayerMixture, Mixture
from mistral_jax.model.rope import Heads, Positions
from mistral_jax.model.split_module import SplitModule, Structure
from mistral_jax.quant import matrix_kernel
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.product import matmul


def _linear(name: str, config: MistralConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> Linear:
    """The linear layer of a declared weight."""
    weight = weight_named(name)
    out_features, in_features = weight.shape(config)
    return Linear(in_features, out_features, bias=weight.has_bias(config), dtype=dtype, rngs=rngs)


def _norm(name: str, config: MistralConfig, *, dtype: jax.typing.DTypeLike) -> RMSNorm:
    return RMSNorm(*weight_named(name).shape(config), eps=config.rms_norm_eps, dtype=dtype)


class Attention(nnx.Module):
    """Projections around an attention that the caller supplies; q, k and v are one matrix `[(N + 2K) * H, D]`."""

    def __init__(self, config: MistralConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.qkv_proj = _linear("self_attn.qkv_proj", config, dtype=dtype, rngs=rngs)
        self.o_proj = _linear("self_attn.o_proj", config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, at: Positions, attend: Attend, mixture: LayerMixture | None
    ) -> tuple[jax.Array, Any]:
        N, _, H = self.heads
        B, T, _ = x.shape
        with jax.named_scope("qkv"):
            heads = self._heads(x, mixture)
        with jax.named_scope("attend"):
            out, kept = attend(heads, at)
        out = self.qkv_proj.gathered(out.astype(x.dtype).reshape(B, T, N * H))
        return _adapted(mixture, "o_proj", out, self.o_proj), kept

    def _heads(self, x: jax.Array, mixture: LayerMixture | None) -> Heads:
        N, K, H = self.heads
        B, T, _ = x.shape
        if mixture is None and (parts := self.qkv_proj.by_part(x)) is not None:
            return Heads(tuple(part.reshape(B, T, -1, H) for part in parts), (N, K), x.dtype)
        return Heads(_adapted(mixture, "qkv_proj", x, self.qkv_proj).reshape(B, T, N + 2 * K, H), (N, K), x.dtype)


def _adapted(mixture: LayerMixture | None, projection: str, x: jax.Array, layer: Linear) -> jax.Array:
    """The product of a linear layer, and what adapters add to it."""
    y = layer(x)
    return y if mixture is None else mixture.add(projection, x, y, by_kernel=layer.by_kernel)


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202); gate and up are one matrix `[2F, D]`, gate first."""

    def __init__(self, config: MistralConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.gate_up_proj = _linear("mlp.gate_up_proj", config, dtype=dtype, rngs=rngs)
        self.down_proj = _linear("mlp.down_proj", config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mixture: LayerMixture | None) -> jax.Array:
        parts = self.gate_up_proj.by_part(x) if mixture is None else None
        if parts is None:
            parts = jnp.split(_adapted(mixture, "gate_up_proj", x, self.gate_up_proj), 2, axis=-1)
        gate, up = parts
        hidden = self.gate_up_proj.gathered((jax.nn.silu(gate) * up).astype(x.dtype))
        return _adapted(mixture, "down_proj", hidden, self.down_proj)


class DecoderLayer(nnx.Module):
    """Attention and MLP, each with normalisation before and the residual after.

    Products stay in float32 through the operations that follow them; only the inputs of the next product are rounded to
    the model's type. This takes fewer roundings and conversions than the reference.
    """

    def __init__(self, config: MistralConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.input_layernorm = _norm("input_layernorm", config, dtype=dtype)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = _norm("post_attention_layernorm", config, dtype=dtype)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, at: Positions, attend: Attend, mixture: LayerMixture | None
    ) -> tuple[jax.Array, Any]:
        """[B, T, D] -> [B, T, D], and what the attention keeps."""
        with jax.named_scope("attention"):
            attended, kept = self.self_attn(self.input_layernorm(x), at, attend, mixture)
            x = (x + attended).astype(x.dtype)
        with jax.named_scope("mlp"):
            return (x + self.mlp(self.post_attention_layernorm(x), mixture)).astype(x.dtype), kept


# Not inlined: layers of one kind are traced and lowered once for a program. XLA inlines the calls.
@partial(jax.jit, static_argnames="structure")
def _run_layer(
    weights: list[jax.Array],
    x: jax.Array,
    at: Positions,
    attend: Attend,
    mixture: LayerMixture | None,
    *,
    structure: Structure,
) -> tuple[jax.Array, Any]:
    return structure.merge(weights)(x, at, attend, mixture)


class Mistral(nnx.Module):
    """The whole decoder. Parameters and activations have the type `param_dtype`; logits are float32.

    Weights of linear layers and embeddings may be packed (see `mistral_jax.quant`); `param_dtype` is then the type of
    activations and norms.

    Do not call the module through `nnx.jit` in a hot path: that traverses it in Python at every call. Split it once and
    pass its leaves to `jax.jit` (see `mistral_jax.runtime.step`).
    """

    def __init__(
        self, config: MistralConfig, *, param_dtype: jax.typing.DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.embed_tokens = Embedding(*weight_named("embed_tokens").shape(config), dtype=param_dtype, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=param_dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = _norm("norm", config, dtype=param_dtype)
        has_head = weight_named("lm_head").is_in(config)
        self.lm_head = _linear("lm_head", config, dtype=param_dtype, rngs=rngs) if has_head else None

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations and KV cache."""
        return self.embed_tokens.dtype

    def use_kernels(self, placement: Placement) -> None:
        """Multiply and normalise by the kernels for GPUs that work. Packed matrices are loaded for theirs."""
        multiplies = matrix_kernel.kernel_works(placement, self.dtype)
        for module in self.matrices():
            module.by_kernel = multiplies
        normalises = norm_kernel.kernel_works(placement, self.config.hidden_size, self.dtype)
        for norm in self.norms():
            norm.by_kernel = normalises

    def norms(self) -> Iterator[RMSNorm]:
        for layer in self.layers:
            yield from (layer.input_layernorm, layer.post_attention_layernorm)
        yield self.norm

    def matrices(self) -> Iterator[Linear | Embedding]:
        """The modules that hold the matrices of products; the embedding only where it is the output matrix as well."""
        for layer in self.layers:
            yield from (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)
        yield self.embed_tokens if self.lm_head is None else self.lm_head

    def __call__(
        self, tokens: jax.Array, cache: KVCache, view: CacheView, mixture: Mixture | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Run T new tokens of B sequences, and store their keys and values.

        Args:
          tokens: int32 [B, T].
          cache: holds the earlier tokens; donate it in the jit around this call.
          view: of `cache`: which blocks the rows own, and the positions of these tokens.
          mixture: adapters and their weights for these tokens; None: the base model.
        Returns: hidden states after the final norm [B, T, D] (undefined for tokens that are not valid), and the cache.
        """
        hidden, layers = self.run(tokens, view.positions, cached_attends(self.config, cache, view), mixture)
        return hidden, replace(cache, layers=tuple(layers))

    def hidden_states(self, tokens: jax.Array, mixture: Mixture | None = None, *, remat: bool = False) -> jax.Array:
        """Hidden states after the final norm of whole texts: int32 [B, T] -> [B, T, D]. Causal, without a cache.

        Memory grows with T squared.

        Args:
          remat: recompute each layer's intermediates in the backward pass instead of storing them.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attends = [CausalAttend(positions=positions, window=window) for window in self.config.layer_windows]
        return self.run(tokens, positions, attends, mixture, remat=remat)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        with jax.named_scope("lm_head"):
            return matmul(hidden, head.weight.get_value(), by_kernel=head.by_kernel)

    def run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attends: Sequence[Attend],
        mixture: Mixture | None = None,
        *,
        remat: bool = False,
    ) -> tuple[jax.Array, list[Any]]:
        """Run the stack of layers with the caller's attentions, one for each layer.

        Returns: hidden states after the final norm [B, T, D], and what each attention keeps.
        """
        at = Positions.of(self.config, positions)
        x = self.embed_tokens(tokens)
        kept: list[Any] = []
        for index, (layer, attend) in enumerate(zip(self.layers, attends, strict=True)):
            split = SplitModule.of(layer)
            run_layer = partial(_run_layer, structure=split.structure)
            if remat:
                run_layer = jax.checkpoint(run_layer)
            with jax.named_scope(f"layer{index}"):
                x, new = run_layer(split.weights, x, at, attend, None if mixture is None else mixture.layer(index))
            kept.append(new)
        return self.norm(x), kept
