"""Train a small Qwen3 with numpy: the forward pass, its gradient and AdamW, in float32.

MLX's CPU backend multiplies matrices at a few GFLOP/s, so training through it takes hours where no GPU is;
numpy takes minutes. The formulas are those of mlx_lm.models.qwen3, and a test holds loss and gradients to
MLX's automatic differentiation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_BETA1, _BETA2, _EPSILON, _WEIGHT_DECAY, _MAX_NORM = 0.9, 0.98, 1e-8, 0.01, 1.0


class Qwen3Trainer:
    """A Qwen3 with tied embeddings and its AdamW state.

    Attributes:
        weights: The parameters by their names in a Hugging Face checkpoint; views of one flat vector.
        gradients: Of the last `loss_and_gradients`, likewise.
    """

    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        self._config = config
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._kv_heads: int = config["num_key_value_heads"]
        self._head_dim: int = config["head_dim"]
        self._eps: float = config["rms_norm_eps"]
        shapes = _shapes(config)
        size = sum(math.prod(shape) for shape in shapes.values())
        self._flat, self._flat_gradient, self._mean, self._square = (
            np.zeros(size, np.float32) for _ in range(4)
        )
        self.weights = _views(self._flat, shapes)
        self.gradients = _views(self._flat_gradient, shapes)
        self._steps = 0
        self._initialise(np.random.default_rng(seed))

    def _initialise(self, generator: np.random.Generator) -> None:
        """Norms are one; matrices normal, residual outputs scaled down for the depth."""
        for name, weight in self.weights.items():
            if weight.ndim == 1:
                weight[:] = 1
                continue
            scale = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                scale /= math.sqrt(2 * self._layers)
            weight[:] = generator.normal(0, scale, weight.shape)

    def step(self, inputs: Ids, targets: Ids, mask: Array, learning_rate: float) -> float:
        """One AdamW step with the gradient clipped to norm 1; returns the loss before it.

        Args:
            inputs: Token ids, (batch, time).
            targets: The next token of each, (batch, time).
            mask: 1 where the loss counts, (batch, time).
            learning_rate: Of this step.
        """
        loss = self.loss_and_gradients(inputs, targets, mask)
        gradient = self._flat_gradient
        gradient *= min(1.0, _MAX_NORM / (float(np.linalg.norm(gradient)) + 1e-6))
        self._steps += 1
        self._mean += (1 - _BETA1) * (gradient - self._mean)
        self._square += (1 - _BETA2) * (gradient * gradient - self._square)
        rate = learning_rate * math.sqrt(1 - _BETA2**self._steps) / (1 - _BETA1**self._steps)
        self._flat *= 1 - learning_rate * _WEIGHT_DECAY
        self._flat -= rate * self._mean / (np.sqrt(self._square) + _EPSILON)
        return loss

    def loss_and_gradients(self, inputs: Ids, targets: Ids, mask: Array) -> float:
        """The mean cross entropy in nats per counted token; fills `gradients`."""
        weights, gradients = self.weights, self.gradients
        self._flat_gradient[:] = 0
        rope = _Rope(inputs.shape[1], self._head_dim, self._config["rope_theta"])
        embedding = weights["model.embed_tokens.weight"]
        hidden = embedding[inputs]
        tapes = []
        for layer in range(self._layers):
            hidden, attention = self._attention(f"model.layers.{layer}.", hidden, rope)
            hidden, mlp = self._mlp(f"model.layers.{layer}.", hidden)
            tapes.append((attention, mlp))
        normed, norm = _rms_norm(hidden, weights["model.norm.weight"], self._eps)
        logits = normed @ embedding.T
        logits -= logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(logits, targets[..., None], -1)
        count = mask.sum()
        loss = float((((log_sum - chosen)[..., 0]) * mask).sum() / count)

        d_logits = np.exp(logits - log_sum)
        np.put_along_axis(
            d_logits, targets[..., None], np.take_along_axis(d_logits, targets[..., None], -1) - 1, -1
        )
        d_logits *= (mask / count)[..., None]
        gradients["model.embed_tokens.weight"] += _outer(d_logits, normed)
        d_hidden, gradients["model.norm.weight"][:] = _rms_norm_backward(d_logits @ embedding, norm)
        for layer in reversed(range(self._layers)):
            attention, mlp = tapes[layer]
            d_hidden = self._mlp_backward(f"model.layers.{layer}.", d_hidden, mlp)
            d_hidden = self._attention_backward(f"model.layers.{layer}.", d_hidden, attention, rope)
        np.add.at(gradients["model.embed_tokens.weight"], inputs, d_hidden)
        return loss

    def _mlp(self, prefix: str, hidden: Array) -> tuple[Array, Any]:
        weights = self.weights
        normed, norm = _rms_norm(hidden, weights[prefix + "post_attention_layernorm.weight"], self._eps)
        gate = normed @ weights[prefix + "mlp.gate_proj.weight"].T
        up = normed @ weights[prefix + "mlp.up_proj.weight"].T
        sigmoid = 1 / (1 + np.exp(-gate))
        inner = gate * sigmoid * up
        return hidden + inner @ weights[prefix + "mlp.down_proj.weight"].T, (
            norm,
            normed,
            gate,
            up,
            sigmoid,
            inner,
        )

    def _mlp_backward(self, prefix: str, d_out: Array, tape: Any) -> Array:
        norm, normed, gate, up, sigmoid, inner = tape
        weights, gradients = self.weights, self.gradients
        gradients[prefix + "mlp.down_proj.weight"][:] = _outer(d_out, inner)
        d_inner = d_out @ weights[prefix + "mlp.down_proj.weight"]
        d_up = d_inner * gate * sigmoid
        d_gate = d_inner * up * sigmoid * (1 + gate * (1 - sigmoid))
        gradients[prefix + "mlp.up_proj.weight"][:] = _outer(d_up, normed)
        gradients[prefix + "mlp.gate_proj.weight"][:] = _outer(d_gate, normed)
        d_normed = (
            d_up @ weights[prefix + "mlp.up_proj.weight"] + d_gate @ weights[prefix + "mlp.gate_proj.weight"]
        )
        d_hidden, gradients[prefix + "post_attention_layernorm.weight"][:] = _rms_norm_backward(
            d_normed, norm
        )
        return d_out + d_hidden

    def _attention(self, prefix: str, hidden: Array, rope: "_Rope") -> tuple[Array, Any]:
        weights = self.weights
        batch, time, _ = hidden.shape
        normed, norm = _rms_norm(hidden, weights[prefix + "input_layernorm.weight"], self._eps)
        query, query_norm = self._project(prefix, "q", normed, self._heads)
        key, key_norm = self._project(prefix, "k", normed, self._kv_heads)
        value = _split_heads(normed @ weights[prefix + "self_attn.v_proj.weight"].T, self._kv_heads)
        # (batch, kv heads, query heads per kv head, time, head dim): query head h reads kv head h // group.
        query = rope.turn(query).reshape(batch, self._kv_heads, -1, time, self._head_dim)
        key, value = rope.turn(key)[:, :, None], value[:, :, None]
        scores = query @ key.swapaxes(-1, -2) * np.float32(self._head_dim**-0.5) + rope.causal
        scores -= scores.max(-1, keepdims=True)
        shares = np.exp(scores)
        shares /= shares.sum(-1, keepdims=True)
        mixed = _join_heads((shares @ value).reshape(batch, self._heads, time, self._head_dim))
        out = hidden + mixed @ weights[prefix + "self_attn.o_proj.weight"].T
        return out, (norm, normed, query_norm, key_norm, query, key, value, shares, mixed)

    def _attention_backward(self, prefix: str, d_out: Array, tape: Any, rope: "_Rope") -> Array:
        norm, normed, query_norm, key_norm, query, key, value, shares, mixed = tape
        weights, gradients = self.weights, self.gradients
        batch, time, _ = d_out.shape
        gradients[prefix + "self_attn.o_proj.weight"][:] = _outer(d_out, mixed)
        d_mixed = _split_heads(d_out @ weights[prefix + "self_attn.o_proj.weight"], self._heads).reshape(
            query.shape
        )
        d_value = (shares.swapaxes(-1, -2) @ d_mixed).sum(2)
        d_shares = d_mixed @ value.swapaxes(-1, -2)
        d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True))
        d_scores *= np.float32(self._head_dim**-0.5)
        d_query = rope.turn_back((d_scores @ key).reshape(batch, self._heads, time, self._head_dim))
        d_key = rope.turn_back((d_scores.swapaxes(-1, -2) @ query).sum(2))
        d_normed = self._project_backward(prefix, "q", d_query, query_norm, normed)
        d_normed += self._project_backward(prefix, "k", d_key, key_norm, normed)
        flat = _join_heads(d_value)
        gradients[prefix + "self_attn.v_proj.weight"][:] = _outer(flat, normed)
        d_normed += flat @ weights[prefix + "self_attn.v_proj.weight"]
        d_hidden, gradients[prefix + "input_layernorm.weight"][:] = _rms_norm_backward(d_normed, norm)
        return d_out + d_hidden

    def _project(self, prefix: str, kind: str, normed: Array, heads: int) -> tuple[Array, Any]:
        """Queries or keys with their norm, before the rotation: (batch, heads, time, head dim)."""
        split = _split_heads(normed @ self.weights[f"{prefix}self_attn.{kind}_proj.weight"].T, heads)
        return _rms_norm(split, self.weights[f"{prefix}self_attn.{kind}_norm.weight"], self._eps)

    def _project_backward(self, prefix: str, kind: str, d_out: Array, norm: Any, normed: Array) -> Array:
        d_split, self.gradients[f"{prefix}self_attn.{kind}_norm.weight"][:] = _rms_norm_backward(d_out, norm)
        flat = _join_heads(d_split)
        self.gradients[f"{prefix}self_attn.{kind}_proj.weight"][:] = _outer(flat, normed)
        return flat @ self.weights[f"{prefix}self_attn.{kind}_proj.weight"]


@dataclass(frozen=True, slots=True, init=False)
class _Rope:
    """Rotary position embedding, halves paired as in mlx's `traditional=False`, and the causal mask."""

    cosine: Array
    sine: Array
    causal: Array

    def __init__(self, time: int, head_dim: int, theta: float) -> None:
        angles = np.arange(time)[:, None] * theta ** -(np.arange(0, head_dim, 2) / head_dim)
        object.__setattr__(self, "cosine", np.cos(angles).astype(np.float32))
        object.__setattr__(self, "sine", np.sin(angles).astype(np.float32))
        object.__setattr__(self, "causal", np.triu(np.full((time, time), -1e9, np.float32), 1))

    def turn(self, x: Array) -> Array:
        first, second = np.split(x, 2, -1)
        return np.concatenate(
            [first * self.cosine - second * self.sine, second * self.cosine + first * self.sine], -1
        )

    def turn_back(self, x: Array) -> Array:
        first, second = np.split(x, 2, -1)
        return np.concatenate(
            [first * self.cosine + second * self.sine, second * self.cosine - first * self.sine], -1
        )


def _rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, tuple[Array, Array, Array]]:
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
    return x * scale * weight, (x, scale, weight)


def _rms_norm_backward(d_out: Array, tape: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """The gradients of the input and of the weight."""
    x, scale, weight = tape
    d_weight = (d_out * x * scale).reshape(-1, x.shape[-1]).sum(0)
    d_scaled = d_out * weight
    return scale * (d_scaled - x * scale**2 * (d_scaled * x).mean(-1, keepdims=True)), d_weight


def _outer(d_out: Array, x: Array) -> Array:
    """The gradient of a weight of shape (out, in), summed over batch and time."""
    gradient: Array = d_out.reshape(-1, d_out.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return gradient


def _split_heads(x: Array, heads: int) -> Array:
    batch, time, _ = x.shape
    return x.reshape(batch, time, heads, -1).swapaxes(1, 2)


def _join_heads(x: Array) -> Array:
    batch, _, time, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, time, -1)


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (width,),
                "self_attn.q_proj": (queries, width),
                "self_attn.k_proj": (keys, width),
                "self_attn.v_proj": (keys, width),
                "self_attn.o_proj": (width, queries),
                "self_attn.q_norm": (head_dim,),
                "self_attn.k_norm": (head_dim,),
                "post_attention_layernorm": (width,),
                "mlp.gate_proj": (inner, width),
                "mlp.up_proj": (inner, width),
                "mlp.down_proj": (width, inner),
            }.items()
        }
    return shapes | {"model.norm.weight": (width,)}


def _views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    views, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        views[name] = flat[start:end].reshape(shape)
        start = end
    return views
