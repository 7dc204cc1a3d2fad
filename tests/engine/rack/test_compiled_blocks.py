import pytest
import torch
from attrs import evolve
from torch._dynamo.utils import counters

from stackwise_core.engine.rack import compiled_blocks
from stackwise_core.engine.rack.compiled_blocks import missing_for_compiling, through_block, through_compiled
from stackwise_core.engine.rack.rack import new_ends, new_stack
from stackwise_core.interfaces.rack_spec import RackSpec

SPEC = RackSpec(blocks=(2, 1), vocab_size=40, seq_len=24, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch):
    """Blocks are captured as graphs, which aren't compiled: what is checked before a call is the same."""
    torch._dynamo.reset()
    counters.clear()
    function = torch.compile(through_block, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(compiled_blocks, "block_function", lambda: function)
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many there are so far."""
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_other_blocks_stacks_and_documents_share_a_graph(captured):
    """A stack that is trained or frozen has one of its own; another shape, another one."""
    ends = new_ends(SPEC, 39, 0)
    several = ends.context(torch.tensor([[1] * 10 + [2] * 14, [1] * 24]))
    more = ends.context(torch.tensor([[1] * 3 + [2] * 3 + [3] * 18, [1] * 5 + [2] * 19]))
    hidden = torch.randn(2, 24, 32, requires_grad=True)
    first, other = new_stack(SPEC, 0, 0), new_stack(SPEC, 1, 0)
    passed = first(hidden, several, through=through_compiled)
    torch.testing.assert_close(passed, first(hidden, several))
    assert graphs() == 1
    other(hidden, more, through=through_compiled)
    new_stack(SPEC, 1, 7)(hidden, several, through=through_compiled)
    assert graphs() == 1
    first.requires_grad_(False)
    with torch.no_grad():
        first(hidden.detach(), more, through=through_compiled)
        assert graphs() == 2
        other.requires_grad_(False)(hidden.detach(), several, through=through_compiled)
    assert graphs() == 2
    first(hidden[:1], ends.context(torch.ones(1, 24)), through=through_compiled)
    assert graphs() == 3


@pytest.mark.slow
def test_a_stack_may_have_as_many_kinds_of_graphs_as_it_needs(captured):
    """More than torch allows by itself."""
    ends, stack = new_ends(SPEC, 39, 0), new_stack(SPEC, 1, 0)
    for rows in range(1, 11):
        context = ends.context(torch.ones(rows, 24))
        stack(torch.randn(rows, 24, 32), context, through=through_compiled)
    assert graphs() == 10


@pytest.mark.slow
def test_what_is_missing_is_said(monkeypatch):
    """A compiler of C++ on a CPU; nothing where there is one."""
    from torch._inductor import cpp_builder, exc

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert missing_for_compiling(CPU) == ""

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert "no C++ compiler" in missing_for_compiling(CPU)


@pytest.mark.slow
def test_a_compiled_block_computes_what_it_does_uncompiled():
    """Outputs and gradients but for rounding, with torch's own compiler; no worker is left."""
    import psutil

    if missing := missing_for_compiling(CPU):
        pytest.skip(missing)
    spec = evolve(SPEC, attention="causal")
    stack, segments = new_stack(spec, 1, 0), torch.tensor([[1] * 10 + [2, 0, 2] + [3] * 11])
    context = new_ends(spec, 39, 0).context(segments)
    results = []
    for through in (None, through_compiled):
        hidden = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        passed = stack(hidden, context, through=through)
        gradients = torch.autograd.grad(passed.square().sum(), [hidden, *stack.layers.parameters()])
        results.append([passed.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert not psutil.Process().children()
