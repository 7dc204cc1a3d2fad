"""The page, read from its HTML: its numbers are those of the files, and nothing in it can do anything."""

import json
import re
import shutil
from itertools import cycle
from pathlib import Path

import pytest

from stackwise_core.run_files.curves import Curve
from stackwise_core.run_files.reading import read_run, read_runs
from stackwise_report import plots, tables, wording
from tests.changed_files import seal
from tests.small_runs import SHORT, lines
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def one(page_of, finished):
    return page_of(finished)


@pytest.fixture(scope="module")
def banded(tmp_path_factory) -> Path:
    changes = {"trainer_mode": {"use": "banded", "cycles": 1}, "cache_backend": None, "rack.stacks": 2}
    return run_tiny(tmp_path_factory.mktemp("banded"), SHORT | changes | {"run.name": "banded"}).directory


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    causal = {"rack.attention": "causal", "objective": "clm", "mask_schedule": None, "rack.stacks": 2}
    return run_tiny(tmp_path_factory.mktemp("causal"), SHORT | causal | {"run.name": "causal"}).directory


def loads_nothing(found) -> None:
    """No script, no handler, and no reference but to the page's own parts."""
    assert not {"script", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in {"href", "src", "xlink:href", "srcset", "action", "data"} & set(attributes):
            assert attributes[name].startswith("#") or (tag, attributes[name]) == ("link", "data:,")
    assert "@import" not in found.html
    assert {each for each in re.findall(r"url\(([^)]*)", found.html) if not each.startswith("#")} == set()
    # What names a namespace loads nothing.
    assert set(re.findall(r'[\w:]*="https?://[^"]*', found.html)) <= {
        'xmlns="http://www.w3.org/2000/svg',
        'xmlns:xlink="http://www.w3.org/1999/xlink',
    }


@pytest.mark.slow
def test_it_is_whole_and_needs_no_network(one):
    """Every tag is closed, every id is there once, every reference leads to one, and nothing is loaded."""
    assert one.html.startswith("<!DOCTYPE html>")
    assert len(one.ids) == len(set(one.ids))
    targets = {attributes.get(name) for _, attributes in one.tags for name in ("href", "xlink:href")} - {None, "data:,"}
    targets |= set(re.findall(r"url\((#[^)]*)", one.html))
    assert {target.removeprefix("#") for target in targets} <= set(one.ids)
    loads_nothing(one)


def test_the_table_of_contents_leads_to_every_heading(one):
    """Each section has a link, in its order."""
    linked = [attributes["href"][1:] for tag, attributes in one.tags if tag == "a"]
    headings = [attributes["id"] for tag, attributes in one.tags if tag == "h2"]
    assert linked == ["summary", *headings]


def test_the_headline_is_that_of_the_files(finished, one):
    """Bound, bits per byte, perplexity, time, peak, steps and tokens."""
    whole, phases = lines(finished, "likelihood")[-1], lines(finished, "phase")
    plan = json.loads((finished / "plan.json").read_text())
    peak = max(phase["peak_bytes"] for phase in phases)
    for shown in (
        f"Bound (NELBO){whole['nats_per_token']:.4f}nats/token ± {whole['standard_error']:.4f}",
        f"Bits per byte{whole['bits_per_byte']:.4f}",
        f"Perplexity{2.718281828459045 ** whole['nats_per_token']:#.4g}a token, at most",
        f"Time{sum(phase['seconds'] for phase in phases):.1f} s",
        f"Peak memory{peak / 1e6:.3g} MB" if peak < 999.5e6 else f"Peak memory{peak / 1e9:.3g} GB",
        f"Steps{sum(phase['steps'] for phase in phases)}3 phases",
        f"Tokens{sum(phase['tokens'] for phase in plan['phases']) / 1e3:.3g} k",
        f"Parameters{plan['rack']['parameters'] / 1e3:.3g} k",
    ):
        assert shown in one.text


def test_tables_are_those_of_the_files(finished, one):
    """Phases, likelihoods by depth and by band, memory, and the cache's counts, row by row."""
    plan, phases = json.loads((finished / "plan.json").read_text())["phases"], lines(finished, "phase")
    likelihoods = lines(finished, "likelihood")
    assert [(row[0], row[5], row[7], row[8]) for row in one.table("phase", "starts at")] == [
        (phase["name"], str(phase["steps"]), f"{phase['first_loss']:.4f}", f"{phase['last_loss']:.4f}")
        for phase in phases
    ]
    assert [(row[0], row[1], row[2], row[5]) for row in one.table("NELBO at")] == [
        (
            f"{each['depth']} stack{'s' if each['depth'] > 1 else ''}",
            f"{each['nats_per_token']:.4f}",
            f"± {each['standard_error']:.4f}",
            f"{each['bits_per_byte']:.4f}",
        )
        for each in likelihoods
    ]
    bands = likelihoods[-1]["bands"]
    assert [row[0] for row in one.table("masked")] == ["0–25 %", "25–50 %", "50–75 %", "75–100 %"]
    assert [row[1] for row in one.table("masked")] == [f"{band['nats_per_token']:.4f}" for band in bands]
    parts = ("process", "weights", "gradients", "optimizer", "activations", "boundaries")
    assert [row[1:] for row in one.table("phase", "process")] == [
        [
            *(wording.size(planned["memory"][part]).replace("\xa0", " ") for part in parts),
            wording.size(planned["memory"]["total"]).replace("\xa0", " "),
            wording.size(phase["peak_bytes"]).replace("\xa0", " "),
            f"{100 * phase['peak_bytes'] / planned['memory']['total']:.1f} %",
        ]
        for planned, phase in zip(plan, phases, strict=True)
    ]
    counts = ("wanted", "found", "computed", "read", "repeated", "evicted", "damaged")
    rows = one.table("phase", "wanted")
    assert [row[0] for row in rows] == ["stack 1", "stack 2"]
    assert [row[1:8] for row in rows] == [
        [f"{phase[f'boundaries_{name}']:,}" for name in counts] for phase in phases[1:]
    ]


def test_configuration_and_environment_are_there(finished, one):
    """The whole of config.toml, and every version."""
    config = " ".join((finished / "config.toml").read_text().split())
    assert config in one.text
    environment = dict(one.table("what", "version"))
    assert environment["torch"] == json.loads((finished / "environment.json").read_text())["torch"]
    assert environment["trainer_mode"].startswith("blockwise (stackwise-modes ")


def test_each_kind_of_mark_is_drawn_and_explained(run, one):
    """Bad steps, spikes and held-out losses; the caption tells of those that there are."""
    before = plots.loss(read_runs([run]), "loss", plots.WIDE)
    assert before.said in one.text
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "bad_step", "phase": "stack 1", "step": 4, "reason": "nan"}\n')
        file.write('{"kind": "loss_spike", "phase": "stack 1", "step": 5, "loss": 99, "mean": 3}\n')
    after = plots.loss(read_runs([run]), "loss", plots.WIDE)
    for drawn, marks in ((before, False), (after, True)):
        assert "Circles: on held-out text." in drawn.said
        assert ("Triangles: spikes. Crosses: left out." in drawn.said) == marks
        assert ("stroke: var(--warn)" in drawn.svg) == marks


def test_losses_that_are_not_the_bound_are_said_to_be_others(run, causal):
    """Those over a part of the mask fractions, or of phases that differ; not those over all of them, nor of NLL."""

    def said(directory: Path) -> bool:
        return "isn't the bound" in plots.loss(read_runs([directory]), "loss", plots.NARROW).said

    assert said(run)
    assert not said(causal)
    plan = json.loads((run / "plan.json").read_text())
    for band, expected in (([0, 1], False), ([0, 0.5], True)):
        for phase in plan["phases"]:
            phase["band"] = [0, 1]
        plan["phases"][1]["band"] = band
        (run / "plan.json").write_text(json.dumps(plan))
        assert said(run) == expected


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_labels_tell_what_they_stand_for(banded):
    """Stacks are whole, also where there is one depth, and names of phases aren't cut where they differ."""
    depths = texts(plots.depth(read_runs([banded]), "depth").svg)
    assert "2" in depths
    assert not {"1.5", "1.6", "2.0", "2.5"} & set(depths)
    assert {"cycle 0, stack 0", "cycle 0, stack 1"} <= set(texts(plots.memory(read_runs([banded]), "memory").svg))


def test_gradient_norms_are_on_a_scale_of_logarithms(run):
    """Its labels are plain, no TeX; a norm of 0 has no place on it, the curve's other points have."""
    path, norms = run / "metrics.jsonl", cycle(("0.0", "0.3", "0.7", "2.5"))
    path.write_text(re.sub(r'(?<="grad_norm": )[\d.e-]+', lambda _: next(norms), path.read_text()))
    runs = read_runs([run])
    assert all(min(phase.curves["grad_norm"].values) == 0 for phase in runs[0].phases)
    drawn = plots.by_step(runs, "norm", key="grad_norm", log=True).svg
    assert drawn.count("stroke: var(--s0)") == 3
    assert {"0.5", "1", "2"} <= set(texts(drawn))
    assert "mathdefault" not in drawn


@pytest.mark.slow
def test_a_banded_run_shows_which_stack_serves_which_band(page_of, banded):
    """Its bands have their stacks, and there is one depth."""
    found = page_of(banded)
    (low, middle), (_, high) = (each["band"] for each in json.loads((banded / "plan.json").read_text())["routes"])
    bands = [f"{100 * low:.3g}–{100 * middle:.3g} %", f"{100 * middle:.3g}–{100 * high:.3g} %"]
    assert [row[:2] for row in found.table("masked", "stack")] == [[bands[0], "0"], [bands[1], "1"]]
    assert [row[0] for row in found.table("NELBO at")] == ["2 stacks"]
    assert "No phase starts from a boundary." in found.text
    trained = [phase["band"] for phase in json.loads((banded / "plan.json").read_text())["phases"]]
    shown = [f"{100 * low:.3g}–{100 * high:.3g} %, 2 fixed" for low, high in trained]
    assert [row[3] for row in found.table("phase", "starts at")] == shown


def test_a_causal_run_has_a_likelihood_and_no_bands(page_of, causal):
    """It isn't called a bound, and no masks are shown."""
    found = page_of(causal)
    assert "Likelihood 1 stack" not in found.text
    assert [row[0] for row in found.table("NLL at")] == ["1 stack", "2 stacks"]
    for absent in ("NELBO", "mask fraction", "Masked share", "The bands"):
        assert absent not in found.text
    loads_nothing(found)


def test_a_run_that_broke_off_before_its_first_step_has_a_page(page_of, run):
    """It says so, and all parts say that there is nothing."""
    for name in ("finished.json", "metrics.jsonl"):
        (run / name).unlink()
    (run / "progress.json").write_text('{"phases": [], "metrics": 0}')
    seal(run, "progress.json")
    (run / "metrics.jsonl").write_text("")
    found = page_of(run)
    assert "not finished: 0 of 3 phases done" in found.text
    assert "No likelihood: the run isn't measured before its end." in found.text
    assert "No step is recorded." in found.text
    assert "No phase that starts from a boundary is done yet." in found.text
    assert not {"gaps"} & set(found.ids)


def test_the_planned_learning_rate_is_drawn_to_the_end_of_the_plan(run, tmp_path):
    """An unfinished run's axis is as long as its plan; without a plan only what was measured is drawn."""
    (run / "finished.json").unlink()
    progress = json.loads((run / "progress.json").read_text())
    (run / "progress.json").write_text(json.dumps(progress | {"phases": progress["phases"][:1]}))
    seal(run, "progress.json")
    first = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"stack 0"' in line]
    (run / "metrics.jsonl").write_text("\n".join(first) + "\n")
    (shown,) = read_runs([run])
    assert [phase.steps for phase in shown.phases] == [6, 0, 0]
    assert plots._planned_begins(shown) == [0, 6, 12]
    drawn = plots.learning_rate([shown], "rate")
    assert drawn.said == "Dashed: planned."
    assert drawn.svg.count("stroke-dasharray") >= 3
    (tmp_path / "empty").mkdir()
    assert plots.learning_rate(read_runs([run, tmp_path / "empty"]), "rate").said == "Dashed: planned."
    for phase in shown.phases:
        phase.planned_rates = Curve()
    assert plots.learning_rate([shown], "rate").said == ""


def test_steps_that_were_passed_on_are_said(page_of, changed):
    """With the phase that left them; what was planned of the rate is past, and isn't drawn."""

    def passes_on(finished):
        finished["phases"][0] |= {"steps": 2, "stopped_early": True, "passed_on": 4}
        finished["phases"][1] |= {"steps": 10}

    directory = changed("finished.json", passes_on)
    assert "2, 4 passed on" in page_of(directory).text
    (shown,) = read_runs([directory])
    assert [phase.planned_steps for phase in shown.phases] == [2, 10, 6]
    assert [len(phase.planned_rates) > 0 for phase in shown.phases] == [False, False, True]


def test_runs_stand_side_by_side(page_of, finished, banded, causal):
    """A colour and a row each, and the keys that differ, all of them and no others."""
    found = page_of(causal, finished, banded)
    runs = read_runs([causal, finished, banded])
    rows = found.table("run", "state")
    assert [row[0] for row in rows] == ["causal", "tiny", "banded"]
    assert [row[2] for row in rows] == [f"{run.whole.nats_per_token:.4f}" for run in runs]
    assert [row[4] for row in rows] == ["–", "–", "–"]
    for said in ("NELBO by mask fraction", "over all mask fractions", "Masked share, lines:"):
        assert said in found.text
    keys = {row[0]: row[1:] for row in found.table("key")}
    assert keys["rack.stacks"] == ["2", "3", "2"]
    assert keys["cache_backend.use"] == ['"memory"', '"disk"', "–"]
    assert keys["objective.use"] == ['"clm"', '"mask_diffusion"', '"mask_diffusion"']
    assert "run.name" not in keys
    assert "training.batch_size" not in keys
    assert all(len(set(values)) > 1 for values in keys.values())
    colours = {place for place in range(8) if f"stroke: var(--s{place})" in found.html}
    assert colours >= {0, 1, 2}
    assert "not all measured on the same tokens" in found.text
    assert "NLL is the likelihood itself" in found.text
    assert len(found.ids) == len(set(found.ids))
    loads_nothing(found)


def test_runs_of_as_many_tokens_of_another_text_do_not_compare(finished, banded, changed):
    """Equal counts are no equal tokens: the plan tells of text and tokenizer."""
    runs = read_runs([finished, banded])
    gain = runs[1].whole.nats_per_token - runs[0].whole.nats_per_token
    assert tables.remarks(runs) == []
    assert [row[4] for row in tables.comparison(runs).rows] == ["–", f"{gain:+.4f}".replace("-", "−")]
    runs = read_runs([finished, changed("plan.json", lambda plan: plan.update(corpus="00" * 32))])
    assert "not all measured on the same tokens" in "".join(tables.remarks(runs))
    assert tables.comparison(runs).rows[1][4] == "–"


def test_long_values_differ_at_their_ends_too(run):
    """Nothing of them is cut before they are compared."""
    paths = [f'"part {number}.txt"' for number in range(100)]
    config = (run / "config.toml").read_text()
    other = Path(shutil.copytree(run, run.parent / "other"))
    for directory, last in ((run, "a"), (other, "b")):
        (directory / "config.toml").write_text(f'long = [{", ".join(paths)}, "{last}"]\n{config}')
    ((key, one, two),) = tables.differences(read_runs([run, other])).rows
    assert (key, one[-4:], two[-4:]) == ("long", '"a"]', '"b"]')


def test_the_same_run_twice_has_nothing_that_differs(page_of, finished):
    """Then it is said."""
    assert "Nothing but their names." in page_of(finished, finished).text


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg></pre><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{",
    "javascript:alert(1)",
    "\x1b[31m\u202e\x00",
)


@pytest.mark.slow
def test_hostile_text_is_shown_as_text(page_of, tmp_path, finished):
    """As names of runs and phases, notes, values of the configuration and of the environment, labels and samples."""
    names = [f"phase {number} {text}" for number, text in enumerate(HOSTILE)]
    run = Path(shutil.copytree(finished, tmp_path / HOSTILE[1]))
    plan, environment = (json.loads((run / name).read_text()) for name in ("plan.json", "environment.json"))
    first = plan["phases"][0]
    plan |= {"phases": [{**first, "name": name, "entry": name} for name in names], "notes": list(HOSTILE)}
    plan["rack"]["d_model"] = HOSTILE[0]
    (run / "plan.json").write_text(json.dumps(plan))
    (run / "environment.json").write_text(json.dumps({**environment, **{text: text for text in HOSTILE}}))
    (run / "finished.json").write_text(json.dumps({"phases": [{"name": name, "steps": 600} for name in names]}))
    with (run / "metrics.jsonl").open("a") as file:
        for name in names:
            values = {"loss": 3.0, "grad_norm": 1.0, "masked": 0.5, "peak_bytes": 10**8}
            file.writelines(
                json.dumps({"kind": "step", "phase": name, "step": step, **values}) + "\n" for step in (1, 600)
            )
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('name = "tiny"', f"name = {json.dumps(HOSTILE[0])}", 1))
    found = page_of(run, samples={run.name: list(HOSTILE)})
    loads_nothing(found)
    for text in HOSTILE:
        shown = "".join(each if each.isprintable() else "\ufffd" for each in text)
        # Phases in two columns of a table, in another, and, cut short, in the plots; note, environment, sample.
        assert found.text.count(shown) >= 7
    assert found.text.count(HOSTILE[0]) >= 7 + 4  # title, headline, configuration, rack
    assert not {"\x00", "\x1b", "\u202e"} & set(found.html)
    assert found.html.count("<script") == 0
    loads_nothing(page_of(run, finished))


def test_a_huge_log_makes_a_small_plot(run):
    """Thirty thousand steps are thinned to what can be seen."""
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(7, 30_000):
            loss = 2 + (step * 7919 % 1000) / 1000
            file.write(f'{{"kind": "step", "phase": "stack 2", "step": {step}, "loss": {loss}}}\n')
    runs = read_runs([run])
    assert len(runs[0].phases[2].curves["loss"]) == 30_000 - 1
    assert len(plots.loss(runs, "loss", plots.WIDE).svg) < 150_000


def test_many_phases_are_shown(run):
    """Each has its row, though not a bar of its own; beyond a thousand they are left out."""
    plan = json.loads((run / "plan.json").read_text())
    (run / "finished.json").unlink()
    for count in (40, 1200):
        plan["phases"] = [{**plan["phases"][0], "name": f"cycle {number}"} for number in range(count)]
        (run / "plan.json").write_text(json.dumps(plan))
        (run / "progress.json").write_text("{}")
        if count == 40:
            found = read_run(run)
            assert len(tables.phases(found).rows) == 43  # with those that metrics.jsonl has
            assert "Filled: measured." in plots.memory([found], "memory").said
        else:
            assert len(read_run(run).phases) == 1000


def test_what_is_trained_is_said_in_words(finished):
    """As the plan's own table has it."""
    assert [tables.trains(phase) for phase in read_run(finished).phases] == [
        "embedding, stack 0, head",
        "stack 1",
        "stack 2",
    ]
