"""The hook ``checkpoint_format`` (provisional): checkpoints of other programs, to start from and to write.

Imports no torch, as ``stackwise check`` describes checkpoints.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, frozen

from stackwise_core.errors import UsageError
from stackwise_core.interfaces.component import Component
from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
"""Names of the tensors outside the blocks. The norm is the one before the head."""
Shapes = dict[str, tuple[int, ...]]
"""Shapes by the tensor's name."""


class BlockSizes(Protocol):
    """Sizes that decide the shapes of a block's tensors."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def n_heads(self) -> int:
        """Attention heads."""

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads."""

    @property
    def d_ff(self) -> int:
        """Width of the SwiGLU layer."""


def block_shapes(sizes: BlockSizes) -> Shapes:
    """Return the shapes of one block's tensors, by their names within it."""
    model, inner = sizes.d_model, sizes.d_ff
    keys = model // sizes.n_heads * sizes.n_kv_heads
    return {
        "input_layernorm.weight": (model,),
        "self_attn.q_proj.weight": (model, model),
        "self_attn.k_proj.weight": (keys, model),
        "self_attn.v_proj.weight": (keys, model),
        "self_attn.o_proj.weight": (model, model),
        "post_attention_layernorm.weight": (model,),
        "mlp.gate_proj.weight": (inner, model),
        "mlp.up_proj.weight": (inner, model),
        "mlp.down_proj.weight": (model, inner),
    }


def tensor_shapes(sizes: BlockSizes, blocks: int, vocab_size: int, *, head: bool) -> Shapes:
    """Return the shapes of a whole model's tensors, in the order of the forward pass.

    Args:
        blocks: the number of blocks; the tensors of the first are ``layers.0.input_layernorm.weight`` and so on.
        vocab_size: rows of embedding and head.
        head: whether there is an LM head beside the embedding.
    """
    table, block = (vocab_size, sizes.d_model), block_shapes(sizes)
    layers = {f"layers.{at}.{name}": shape for at in range(blocks) for name, shape in block.items()}
    return {EMBEDDING: table, **layers, NORM: (sizes.d_model,), **({HEAD: table} if head else {})}


class RefusedCheckpoint(UsageError):
    """Error of a checkpoint that can't become a rack, with all problems found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@frozen
class Refusal:
    """A reason not to start from a checkpoint whose shape is that of a rack."""

    message: str
    """A sentence: what was expected, and what was found."""
    help: str = ""
    """Advice for the user."""
    embedding_too: bool = True
    """Whether the embedding alone is refused as well."""


def _positive(instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"expected {attribute.name} to be a number above 0, found {value!r:.80}")


def _whole(instance: Any, attribute: Any, value: Any) -> None:
    if type(value) is not int or not 1 <= value < 1 << 40:
        raise ValueError(f"expected {attribute.name} to be a whole number of 1 or more, found {value!r:.80}")


def _whole_or_none(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None:
        _whole(instance, attribute, value)


def _even_heads(instance: "Checkpoint", attribute: Any, value: Any) -> None:
    _whole(instance, attribute, value)
    if instance.d_model % value or instance.d_model // value % 2:
        raise ValueError(f"expected n_heads to divide d_model = {instance.d_model} into even widths, found {value}")


def _grouped_heads(instance: "Checkpoint", attribute: Any, value: Any) -> None:
    _whole(instance, attribute, value)
    if instance.n_heads % value:
        raise ValueError(f"expected n_kv_heads to divide n_heads = {instance.n_heads}, found {value}")


def _attention(instance: Any, attribute: Any, value: Any) -> None:
    if value not in ("bidirectional", "causal"):
        raise ValueError(f'expected attention to be "bidirectional" or "causal", found {value!r:.80}')


def _boolean(instance: Any, attribute: Any, value: Any) -> None:
    if type(value) is not bool:
        raise ValueError(f"expected {attribute.name} to be true or false, found {value!r:.80}")


def _ids(instance: Any, attribute: Any, value: Any) -> None:
    if not all(type(id_) is int and 0 <= id_ < 1 << 31 for id_ in value.values()):
        raise ValueError(f"expected special_ids to be ids by name, found {value!r:.80}")


@frozen(kw_only=True)
class Checkpoint:
    """Description of a rack in a format's files, made without torch. A format may subclass it."""

    title: str
    """Title for people, such as the name of the model's class."""
    blocks: int = field(validator=_whole)
    """Transformer blocks."""
    vocab_size: int = field(validator=_whole)
    """Rows of its embedding; there may be more than its tokenizer has ids."""
    d_model: int = field(validator=_whole)
    """Width of the residual stream."""
    n_heads: int = field(validator=_even_heads)
    """Attention heads."""
    n_kv_heads: int = field(validator=_grouped_heads)
    """Key and value heads."""
    d_ff: int = field(validator=_whole)
    """Width of the SwiGLU layer."""
    attention: Literal["bidirectional", "causal"] = field(validator=_attention)
    """Attention that it was trained with. A rack that starts from it may have the other one."""
    tie_embeddings: bool = field(validator=_boolean)
    """Whether its LM head is the transposed embedding."""
    rope_theta: float = field(validator=_positive)
    """Base of the rotary position angles."""
    norm_eps: float = field(validator=_positive)
    """Number added to the mean square in RMSNorm."""
    seq_len: int | None = field(default=None, validator=_whole_or_none)
    """Length of the longest text that it was trained for, where the checkpoint states it."""
    has_head_tensor: bool = field(default=True, validator=_boolean)
    """Whether it holds an LM head. One that is also tied must equal the embedding."""
    tokenizer: str
    """Tokenizer of its embedding, written as in `data.tokenizer`: "bytes", or a tokenizer.json in its directory."""
    special_ids: Mapping[str, int] = field(factory=dict, validator=_ids)
    """Its mask, padding and other special tokens, written as in `data.special_ids`."""
    files: tuple[str, ...]
    """Names of all its files, those with weights too. They tell it from other checkpoints."""
    notes: tuple[str, ...] = ()
    """Sentences for the plan."""
    refusals: tuple[Refusal, ...] = ()
    """Reasons not to start from it."""

    @property
    def shapes(self) -> Shapes:
        """Shapes of its tensors, in the order of the forward pass."""
        return tensor_shapes(self, self.blocks, self.vocab_size, head=self.has_head_tensor)


@frozen(kw_only=True)
class ExportedRack:
    """A finished rack to be written."""

    name: str
    """The directory's name, for a description of the model."""
    spec: RackSpec
    """Shape of the stacks that are written. They share one embedding and head, and no time is embedded."""
    adapters: tuple[str, ...] = ()
    """Names of its adapters. Their own hook writes each into `adapters/NAME` after the weights."""
    loading: tuple[str, ...] = ()
    """Markdown on loading the adapters, one text for all that are loaded in the same way."""

    @property
    def blocks(self) -> int:
        """Transformer blocks of all stacks."""
        return sum(self.spec.blocks)

    @property
    def shapes(self) -> Shapes:
        """Shapes of its tensors, in the order in which they are given."""
        return tensor_shapes(self.spec, self.blocks, self.spec.vocab_size, head=not self.spec.tie_embeddings)

    @property
    def described(self) -> dict[str, Any]:
        """Fields of a `Checkpoint` that make up its shape, as JSON values."""
        same = ("vocab_size", "d_model", "n_heads", "n_kv_heads", "d_ff", "attention", "tie_embeddings")
        values = {name: getattr(self.spec, name) for name in (*same, "rope_theta", "norm_eps", "seq_len")}
        return {"blocks": self.blocks, "has_head_tensor": not self.spec.tie_embeddings, **values}


@frozen(kw_only=True)
class ExportedTokenizer:
    """The tokenizer that a rack was trained with."""

    content: Mapping[str, Any]
    """A tokenizer.json as JSON values that gives the same ids, with tokens for mask and padding."""
    special_ids: Mapping[str, int]
    """Ids of `mask`, `pad`, and of special tokens that `content` doesn't mark as special, as in `data.special_ids`."""
    tokens: Mapping[int, str]
    """The token of each of these ids that has one."""


@frozen(kw_only=True)
class Written:
    """Record of a written checkpoint."""

    title: str
    """Title for people, such as the name of the model's class."""
    numbers: str
    """The number format of its weights: "fp32"."""
    facts: Mapping[str, Any] = field(factory=dict)
    """JSON values for `stackwise export --json`."""
    notes: tuple[str, ...] = ()
    """Lines to print, such as the program that loads it."""


class CheckpointFormat(Component):
    """Reader and writer of directories. ``rack.init_from`` recognises the format itself, and uses no options."""

    holds_adapters: bool = False
    """Whether ``adapters/NAME`` may be beside its files. If not, a rack with adapters is refused."""

    @abstractmethod
    def recognises(self, directory: Path) -> bool:
        """Return whether a directory is in this format, by the names of its files or a mark in one. Without torch."""

    @abstractmethod
    def describe(self, directory: Path) -> Checkpoint:
        """Describe a directory that is in this format. Without torch, and without reading weights.

        Raises:
            RefusedCheckpoint: it can't become a rack; with all problems. Any other error means that it is damaged.
        """

    @abstractmethod
    def read(self, directory: Path, checkpoint: Checkpoint, name: str, into: "Tensor") -> None:
        """Read one tensor.

        Args:
            checkpoint: the result of ``describe``.
            name: a name of ``checkpoint.shapes``.
            into: the tensor to fill: of the right shape, in fp32 and contiguous.
        """

    def refuses(self, rack: ExportedRack) -> str:
        """Return why a rack can't be written, as a sentence; empty where it can."""
        return ""

    @abstractmethod
    def write(
        self, rack: ExportedRack, tensors: "Iterator[tuple[str, Tensor]]", tokenizer: ExportedTokenizer, directory: Path
    ) -> Written:
        """Write a rack into an empty directory. The core syncs and renames the directory when it is complete.

        Args:
            tensors: names and weights in fp32, in the order of ``rack.shapes``. Each is read when you ask for it, so
                that they needn't be in memory together.
        """
