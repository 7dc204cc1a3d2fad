"""A transformer block with the parts, the names and the weight layout of Hugging Face's Llama.

Shapes: B batch, T tokens, D d_model, H heads, K key-value heads, W head width.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stackwise_core.engine.rack.attention_context import PackedDocuments
from stackwise_core.engine.rack.packed_attention import packed_attention
from stackwise_core.interfaces.rack_spec import RackSpec


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in the residual stream's fp32.

    The weight is cast to the input's dtype, since a frozen stack may hold it in half precision. The result is cast to
    autocast's dtype at once: otherwise each projection that reads it makes, and keeps, a copy of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        y = F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


def rotary_tables(spec: RackSpec, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines [T, W] of rotary positions (Su et al. 2021), in Llama's rotate-half layout.

    The sines of a head's lower half are negative, so that ``rotate`` needn't negate.
    """
    half = torch.arange(0, spec.head_dim, 2, dtype=torch.int64, device=device).to(torch.float32)
    inverse_frequencies = 1.0 / (spec.rope_theta ** (half / spec.head_dim))  # [W/2]
    angles = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), inverse_frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + W/2) of a head [B, T, H, W] by its position's angle, from cosines and sines [T, 1, W]."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over each document of a row by itself."""

    def __init__(self, spec: RackSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        self.causal = spec.attention == "causal"
        self.q_proj = nn.Linear(spec.d_model, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(spec.d_model, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(spec.d_model, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, spec.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: PackedDocuments | Tensor | None) -> Tensor:
        """Attend over x [B, T, D], within documents or as a mask bool [B, 1, T, T] says; None where each row is one."""
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, self.head_dim)
        k = self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)
        # On a CPU torch's attention takes three times as long backwards in bf16 as in fp32 (docs/log.md).
        in_fp32 = q.device.type == "cpu" and q.requires_grad and q.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast("cpu", enabled=False) if in_fp32 else nullcontext():
            if in_fp32:
                q, k, v = q.float(), k.float(), v.float()
            cos, sin = cos.to(q.dtype)[:, None], sin.to(q.dtype)[:, None]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if documents is None or isinstance(documents, Tensor):
                y = F.scaled_dot_product_attention(
                    q.transpose(1, 2),  # [B, H, T, W]
                    k.transpose(1, 2),
                    v.transpose(1, 2),
                    attn_mask=documents,
                    is_causal=self.causal and documents is None,  # a mask holds the order, too
                    enable_gqa=self.kv_heads != self.heads,
                ).transpose(1, 2)
            else:
                y = packed_attention(q, k, v, documents, causal=self.causal)
        return self.o_proj(y.reshape(batch, tokens, self.heads * self.head_dim))


class SwiGLU(nn.Module):
    """Gated feed-forward layer, silu(gate x) * (up x) (Shazeer 2020)."""

    def __init__(self, spec: RackSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both added to the residual stream."""

    def __init__(self, spec: RackSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.d_model, eps=spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.d_model, eps=spec.norm_eps)
        self.mlp = SwiGLU(spec)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: PackedDocuments | Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, documents)
        return x + self.mlp(self.post_attention_layernorm(x))
