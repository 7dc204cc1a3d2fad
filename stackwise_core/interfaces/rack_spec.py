"""The shape of a rack. A trainer mode partitions and plans it, and the modules are built from it."""

from typing import Literal

from attrs import frozen


@frozen(kw_only=True)
class RackSpec:
    """Sizes of a rack, by the field's names. Stacks are counted from the tokens upwards, from 0."""

    blocks: tuple[int, ...]
    """Number of blocks of each stack."""
    vocab_size: int
    """Number of token ids, including the mask token."""
    seq_len: int
    """Tokens a sequence."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Attention heads."""
    n_kv_heads: int
    """Key and value heads."""
    d_ff: int
    """Width of the SwiGLU layer."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Attention of a token: to the whole sequence, or to no token after it."""
    tie_embeddings: bool = True
    """Whether the LM head is the transposed embedding."""
    rope_theta: float = 10_000.0
    """Base of the rotary position angles."""
    norm_eps: float = 1e-5
    """Number added to the mean square in RMSNorm."""
    init_std: float = 0.02
    """Standard deviation of new weights."""
    ends: Literal["shared", "per_stack"] = "shared"
    """Embedding and head: one of each for all stacks, or each stack's own."""
    time_encoding: Literal["sinusoidal", "learned"] | None = None
    """Embedding of the mask fraction, added to every token's embedding. None: the network doesn't get it."""
    time_fractions: tuple[float, ...] = ()
    """Mask fractions of the discrete time steps, in order. Empty: time is continuous."""
    given: frozenset[int] = frozenset()
    """Stacks whose weights come from ``rack.init_from``. If there are any, so do embedding and head."""

    @property
    def stacks(self) -> int:
        """Number of stacks."""
        return len(self.blocks)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def block_parameters(self) -> int:
        """Weights of one block: four attention projections, three of SwiGLU, two norms."""
        query_and_output = 2 * self.d_model * self.n_heads * self.head_dim
        key_and_value = 2 * self.d_model * self.n_kv_heads * self.head_dim
        return query_and_output + key_and_value + 3 * self.d_model * self.d_ff + 2 * self.d_model

    def stack_parameters(self, stack: int) -> int:
        """Return the weights of one stack, its exit norm included."""
        return self.blocks[stack] * self.block_parameters + self.d_model

    @property
    def embedding_parameters(self) -> int:
        """Weights of one token embedding, and of the time embedding beside it."""
        time_rows = {None: 0, "sinusoidal": self.d_model, "learned": len(self.time_fractions)}[self.time_encoding]
        return (self.vocab_size + time_rows) * self.d_model

    @property
    def head_parameters(self) -> int:
        """Weights of one LM head of its own; 0 where it is tied to the embedding."""
        return 0 if self.tie_embeddings else self.vocab_size * self.d_model

    @property
    def parameters(self) -> int:
        """Weights of the whole rack."""
        stacks = sum(self.stack_parameters(stack) for stack in range(self.stacks))
        ends = self.stacks if self.ends == "per_stack" else 1
        return stacks + ends * (self.embedding_parameters + self.head_parameters)

    def stack_flops(self, stack: int) -> int:
        """Return the floating-point operations of one stack's forward pass, a token: matrix products and attention."""
        matmuls = self.block_parameters - 2 * self.d_model
        attention = 2 * self.seq_len * self.n_heads * self.head_dim
        return 2 * self.blocks[stack] * (matmuls + attention)
