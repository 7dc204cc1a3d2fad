from pathlib import Path

import pytest
from attrs import frozen

from stackwise_cache.options import DiskOptions
from stackwise_core.config.choices import chosen
from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load, structure
from stackwise_core.config.model import Choice, TrainingConfig
from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.hookspecs import Implementation
from stackwise_core.options import ByteSize, option
from stackwise_core.registry import Declared
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_precision.options import Fp16Options


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into a folder of their own, which is the working directory's sibling."""
    folder = tmp_path / "configs"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(text, name="stackwise.toml"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def config_of(path, **arguments):
    return load(path, **{"environ": {}} | arguments)[0]


def test_an_empty_file_gives_the_defaults(write):
    """Nothing is required: an empty file is the defaults, with the implementations that the model names."""
    config = config_of(write(""))
    assert config.training == TrainingConfig()
    assert config.mask_schedule == Choice("linear", RangeOptions())
    assert config.precision.active.use == "fp32"
    assert config.precision.trunk is None
    assert config.cache_backend is None
    assert config.trainer_mode.use == "blockwise"


def test_every_kind_of_value(write):
    """Integers, floats from integers, strings, booleans, tuples, sizes and words arrive with their types."""
    config = config_of(
        write(
            """
            [rack]
            tie_embeddings = false
            rope_theta = 500
            n_kv_heads = 4
            [training]
            masks = "resampled"
            [optimizer]
            betas = [0, 0.5]
            [cache_backend]
            use = "disk"
            capacity = "1.5 GiB"
            """
        )
    )
    assert config.rack.tie_embeddings is False
    assert (config.rack.rope_theta, type(config.rack.rope_theta)) == (500.0, float)
    assert config.rack.n_kv_heads == 4
    assert config.optimizer.options.betas == (0.0, 0.5)
    assert all(type(beta) is float for beta in config.optimizer.options.betas)
    assert config.training.masks == "resampled"
    assert config.cache_backend == Choice("disk", DiskOptions(capacity=ByteSize(3 * 2**29)))


def test_layers_in_their_order(write):
    """default < extends < file < environment < --set: each key keeps the value of the highest layer that sets it."""
    write("[training]\nepochs_per_stack = 2\nbatch_size = 2\nwarmup = 0.2\ndecay = 0.2\nfinal_lr = 0.2", "base.toml")
    path = write('extends = "base.toml"\n[training]\nbatch_size = 3\nwarmup = 0.3\ndecay = 0.3\n')
    training = config_of(
        path,
        environ={"STACKWISE_TRAINING__WARMUP": "0.4", "STACKWISE_TRAINING__DECAY": "0.4", "HOME": "/"},
        overrides=["training.decay=0.5"],
    ).training
    assert (training.masks_per_sample, training.final_lr, training.batch_size) == (4, 0.2, 3)
    assert (training.warmup, training.decay) == (0.4, 0.5)


def test_extends_is_relative_to_its_file_and_recursive(write):
    """A base in another folder extends one beside itself."""
    write('extends = "lowest.toml"\n[rack]\nstacks = 3', "bases/base.toml")
    write("[rack]\nstacks = 2\nblocks_per_stack = 1", "bases/lowest.toml")
    rack = config_of(write('extends = "bases/base.toml"')).rack
    assert (rack.stacks, rack.blocks_per_stack) == (3, 1)


def test_another_use_drops_the_options_below(write):
    """Where a higher layer picks another implementation, the lower layers' options of that table fall away."""
    path = write('[mask_schedule]\nmin_fraction = 0.3\n[precision.active]\nuse = "fp16"\ninitial_scale = 2\n')
    assert config_of(path).mask_schedule == Choice("linear", RangeOptions(min_fraction=0.3))
    higher = config_of(path, overrides=["mask_schedule.use=constant", "precision.active=bf16"])
    assert higher.mask_schedule == Choice("constant", ConstantOptions())
    assert higher.precision.active.use == "bf16"


def test_the_same_use_keeps_the_options_below(write):
    """Naming the same implementation again drops nothing, whatever the order of --set."""
    path = write('[precision]\nactive = { use = "fp16", initial_scale = 2 }')
    overrides = ['precision.active.cpu_compute="fp16"', "precision.active.use=fp16"]
    assert config_of(path, overrides=overrides).precision.active.options == Fp16Options("fp16", 2.0)


def test_a_name_is_short_for_a_table(write):
    """A string in place of a hook's table is its ``use``; a higher layer may add options to it."""
    config = config_of(
        write('mask_schedule = "cosine"\n[precision]\ntrunk = "fp16"'), overrides=["precision.trunk.initial_scale=4"]
    )
    assert config.mask_schedule == Choice("cosine", RangeOptions())
    assert config.precision.trunk == Choice("fp16", Fp16Options(initial_scale=4.0))


@pytest.mark.parametrize(
    ("value", "name"), [("plain words", "plain words"), ('"quoted"', "quoted"), ("1\nseed = 2", "1\nseed = 2")]
)
def test_values_of_set_are_toml_or_else_strings(write, value, name):
    """What isn't one TOML value is taken as a string."""
    assert config_of(write(""), overrides=[f"run.name={value}"]).run.name == name


def test_values_of_set_have_their_toml_types(write):
    """Arrays and tables can be set whole."""
    config = config_of(
        write(""), overrides=["optimizer.betas=[0.5, 0.75]", 'cache_backend={use = "disk", shard_entries = 8}']
    )
    assert config.optimizer.options.betas == (0.5, 0.75)
    assert config.cache_backend.options.shard_entries == 8


def test_tables_by_whole_number(write):
    """A table's keys become whole numbers; a layer adds to it key by key, and an array takes the place of a table."""
    path = write(
        "[training]\nstack_lr_multipliers = { 0 = 0.5, 3 = 2 }\n"
        "time_steps = 2\ntime_step_fractions = { 0 = 0.15, 1 = 1 }"
    )
    training = config_of(
        path,
        environ={"STACKWISE_TRAINING__STACK_LR_MULTIPLIERS__3": "4"},
        overrides=["training.stack_lr_multipliers={5=0.25}", "training.stack_lr_multipliers.6=0"],
    ).training
    assert training.stack_lr_multipliers == {0: 0.5, 3: 4.0, 5: 0.25, 6: 0.0}
    assert training.time_step_fractions == {0: 0.15, 1: 1.0}
    fractions = config_of(path, overrides=["training.time_step_fractions=[0.5, 0.75]"]).training.time_step_fractions
    assert fractions == (0.5, 0.75)


@pytest.mark.parametrize("key", ["x", "", "07", "-0", "+1", "1_0", "1e3", " 1", "٣", "9" * 30, 1.5, True, None])
def test_keys_that_are_no_whole_numbers(registry, key):
    """Only the one plain spelling of a number is a key, so that no two keys are the same."""
    with pytest.raises(ConfigError, match="expected a whole number as key, such as 3, found"):
        structure({"training": {"stack_lr_multipliers": {key: 1}}}, registry)


def test_keys_from_python(registry):
    """Through the Python API a key may be a number already."""
    config = structure({"training": {"stack_lr_multipliers": {0: 1, 2: 0.5}}}, registry)
    assert config.training.stack_lr_multipliers == {0: 1.0, 2: 0.5}


def test_tables_of_choices(write):
    """Each number has a choice of its own, as a name or a table; layers add to them number by number."""
    write('[precision.stacks]\n0 = "bf16"\n3 = { use = "fp16", initial_scale = 2 }\n4 = "fp16"', "base.toml")
    path = write(
        'extends = "base.toml"\n[precision.stacks.3]\ncpu_compute = "fp16"\n[precision.stacks.5]\nuse = "fp16"'
    )
    stacks = config_of(
        path,
        environ={"STACKWISE_PRECISION__STACKS__4": "fp32", "STACKWISE_PRECISION__STACKS__6": "fp16"},
        overrides=["precision.stacks.10=bf16", "precision.stacks.5.initial_scale=4", 'precision.stacks={0="fp32"}'],
    ).precision.stacks
    assert {number: choice.use for number, choice in stacks.items()} == {
        0: "fp32",
        3: "fp16",
        4: "fp32",
        5: "fp16",
        6: "fp16",
        10: "bf16",
    }
    assert stacks[3].options == Fp16Options("fp16", 2.0)
    assert stacks[5].options == Fp16Options(initial_scale=4.0)


def test_what_is_chosen(write):
    """Every choice comes with its dotted key and its hook, those of a table by number."""
    config = config_of(write('[precision]\nactive = "bf16"\nstacks = { 10 = "fp16", 2 = "bf16" }'))
    assert [(key, hook, choice.use) for key, hook, choice in chosen(config)] == [
        ("mask_schedule", "mask_schedule", "linear"),
        ("precision.active", "precision", "bf16"),
        ("precision.stacks.2", "precision", "bf16"),
        ("precision.stacks.10", "precision", "fp16"),
        ("trainer_mode", "trainer_mode", "blockwise"),
        ("optimizer", "optimizer", "adamw"),
        ("objective", "objective", "mask_diffusion"),
    ]


@pytest.mark.parametrize("overrides", [["{}=fp16", "{}.initial_scale=4"], ["{}.initial_scale=4", "{}=fp16"]])
@pytest.mark.parametrize("key", ["precision.active", "precision.stacks.3"])
def test_a_name_and_an_option_of_it_are_set_in_any_order(write, key, overrides):
    """Neither drops the other, from the command line and from the environment."""
    path = write("")
    fp16 = Choice("fp16", Fp16Options(initial_scale=4.0))
    config = config_of(path, overrides=[each.format(key) for each in overrides])
    assert {where: choice for where, _, choice in chosen(config)}[key] == fp16
    variable = f"STACKWISE_{key.upper().replace('.', '__')}"
    config = config_of(path, environ={variable: "fp16", f"{variable}__INITIAL_SCALE": "4"})
    assert {where: choice for where, _, choice in chosen(config)}[key] == fp16


def test_each_of_two_settings_is_blamed_for_its_own(write):
    """A name and an option of one table that are both wrong, or one of them, are located each at its own --set."""
    path = write("")
    for overrides, blamed in (
        (["precision.stacks.3=fp61", "precision.stacks.3.initial_scale=4"], "precision.stacks.3=fp61"),
        (["precision.stacks.3=fp16", "precision.stacks.3.initial_scale=x"], "precision.stacks.3.initial_scale=x"),
        (
            ["precision.stacks.3=fp61", 'precision.stacks={3="fp32"}', "precision.stacks.3.x=1"],
            "precision.stacks.3.x=1",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            config_of(path, overrides=overrides)
        assert [problem.place.origin for problem in caught.value.problems] == [f"--set {blamed}"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[precision]\nstacks = { 0 = "bf16", 3 = "fp61" }', "2:28"),
        ('[precision]\nstacks = { 0 = "bf16", 3 = { use = "fp61" } }', "2:36"),
        ('[precision]\nstacks.3 = "fp61"', "2:12"),
        ('[precision]\nactive = "bf16"\n[precision.stacks]\n0 = "bf16"\n3.use = "fp61"', "5:9"),
        ('[precision.stacks.0]\nuse = "bf16"\n[adapter]\n[precision.stacks.3]\nuse = "fp61"', "5:7"),
    ],
)
def test_an_unknown_name_in_a_table_of_choices_is_located(write, text, place):
    """The carets lie under the name, however the table is written."""
    with pytest.raises(ConfigError, match=rf'stackwise\.toml:{place}: precision\.stacks\.3\.use: unknown .* "fp61"\n'):
        config_of(write(text))


def test_paths_are_relative_to_the_layer_that_sets_them(write, tmp_path):
    """A file's paths are taken from its folder, those of --set from the working directory; names stay names."""
    write('[data]\ncorpus = "texts/*.md"\ntokenizer = "tokenizer.json"', "bases/base.toml")
    path = write('extends = "bases/base.toml"')
    data = config_of(path, overrides=["data.tokenizer=mine.json"]).data
    assert data.corpus.options.path == str(tmp_path / "configs/bases/texts/*.md")
    assert data.tokenizer == str(tmp_path / "here/mine.json")
    data = config_of(write('[data]\ncorpus = "python-docs"\ntokenizer = "bytes"')).data
    assert (data.corpus.options.path, data.tokenizer) == ("python-docs", "bytes")
    assert config_of(write('[data]\ncorpus = "/texts"')).data.corpus.options.path == "/texts"


PLUGIN = """
from stackwise_core.hookspecs import Implementation, hookimpl

@hookimpl
def mask_schedule():
    options = "stackwise_masking.options:ConstantOptions"
    return [Implementation("{name}", "Mine", "stackwise_masking.schedules:Constant", options)]
"""


def test_local_plugins(write, tmp_path):
    """A file's own plugins and those of -p are there when the rest is read, and both stand in the configuration."""
    write(PLUGIN.format(name="mine"), "plugin_of_the_file.py")
    Path("plugin_of_the_line.py").write_text(PLUGIN.format(name="other"))
    path = write('[run]\nplugins = ["plugin_of_the_file.py"]\n[mask_schedule]\nuse = "mine"')
    config, registry = load(path, environ={}, plugins=["plugin_of_the_line.py"])
    assert config.mask_schedule.options == ConstantOptions()
    assert registry.resolve("mask_schedule", "other").distribution == "plugin_of_the_line"
    files = [str(tmp_path / "configs/plugin_of_the_file.py"), str(tmp_path / "here/plugin_of_the_line.py")]
    assert list(config.run.plugins) == files


def test_a_bad_plugin_file_is_located(write):
    """A plugin file that the registry refuses is blamed where the TOML names it."""
    write("", "not-a-module.py")
    path = write('[run]\nplugins = ["not-a-module.py"]')
    with pytest.raises(ConfigError, match=r"stackwise\.toml:2:12: run\.plugins\[0\]: plugin file"):
        load(path, environ={})


def test_a_plugin_file_that_fails_is_no_plugin(write, tmp_path):
    """Whoever named it meant it to be used, so that it isn't passed over as a broken package is."""
    write("nothing = 1", "empty_plugin.py")
    path = write('[run]\nplugins = ["empty_plugin.py"]')
    said = r'the plugin "empty_plugin" of empty_plugin\.py failed at declaration: it has no hook'
    with pytest.raises(UnavailableError, match=rf"stackwise\.toml:2:12: run\.plugins\[0\]: {said}"):
        load(path, environ={})
    with pytest.raises(UnavailableError, match=rf"-p: {said}"):
        load(write(""), environ={}, plugins=[str(tmp_path / "configs/empty_plugin.py")])
    load(path, environ={}, plugins=["no:empty_plugin"])


def test_a_run_that_was_meant(write, tmp_path):
    """A name that is neither a file nor a directory may be a run's with a slip in it."""
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/plan.json").touch()
    with pytest.raises(ConfigError, match=r"no such file\n.*did you mean .*runs/first\?"):
        load(tmp_path / "runs/frist", environ={})


def test_plugins_are_blocked_by_the_command_line(write):
    """``-p no:NAME`` reaches the registry."""
    with pytest.raises(Exception, match="stackwise-cache") as caught:
        load(write('[cache_backend]\nuse = "disk"'), environ={}, plugins=["no:cache"])
    assert caught.value.exit_code == 3


def test_the_registrys_variables_are_no_configuration(write):
    """STACKWISE_DISABLE_PLUGINS and STACKWISE_PLUGIN_AUTOLOAD go to the registry and aren't read as keys."""
    load(write(""), environ={"STACKWISE_DISABLE_PLUGINS": "cache", "STACKWISE_PLUGIN_AUTOLOAD": "1"})


def test_a_byte_order_mark_and_carriage_returns(write):
    """A file as Windows editors write it is read, and its lines are counted right."""
    path = write("")
    path.write_bytes(b"\xef\xbb\xbf[training]\r\nbatch_size = 8\r\n")
    assert config_of(path).training.batch_size == 8
    path.write_bytes(b"\xef\xbb\xbf[training]\r\nbatch_size = 0\r\n")
    with pytest.raises(ConfigError, match=r"stackwise\.toml:2:14"):
        load(path, environ={})


def test_structure_leaves_its_dict_alone(registry):
    """A plain dict is read with the same checks, without places, and isn't changed."""
    data = {"precision": {"active": "bf16"}, "optimizer": {"betas": (0.5, 0.5)}}
    config = structure(data, registry)
    assert config.precision.active.use == "bf16"
    assert config.optimizer.options.betas == (0.5, 0.5)
    assert data == {"precision": {"active": "bf16"}, "optimizer": {"betas": (0.5, 0.5)}}
    with pytest.raises(ConfigError) as caught:
        structure({"training": {"batch_size": 0}}, registry)
    assert str(caught.value) == "training.batch_size: expected at least 1, found 0\n\n1 error. Nothing was run."


@frozen
class Inner:
    depth: int = option(1, "How deep.")


@frozen
class PluginOptions:
    """Options of a plugin of somebody else, with types that none of ours has."""

    required: str = option(help="Must be there.")
    inner: Inner = option(dict, "A table.")
    filled: Inner = option(lambda: {"depth": 7}, "A table with a default.")
    fractions: tuple[float, ...] | dict[str, float] | None = option(None, "A list or a table.")
    many: tuple[Inner, ...] = option((), "An array of tables.")
    file: Path | None = option(None, "A path.", path=())


TABLES_OF_PRECISION = """
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.options import option

@frozen
class Options:
    file: str = option("none", "A path.", path=("none",))

@hookimpl
def precision():
    return [Implementation("tabled", "By table", "tables_of_precision:Tabled", "tables_of_precision:Options")]
"""


class OneImplementation:
    """A registry in which every name means one implementation."""

    def __init__(self, options):
        self.options = options

    def resolve(self, hook, use):
        return Declared(hook, Implementation(use, "", "a:B", "a:C"), "fake", "fake", "1")

    def options_class(self, declared):
        return self.options if declared.hook == "cache_backend" else Inner


def test_options_of_any_shape():
    """Nested tables, unions, arrays of tables and paths of a plugin's options are read like the core's own."""
    given = {"use": "x", "required": "a", "fractions": {"0": 1}, "many": [{"depth": 3}], "file": "a.txt"}
    options = structure({"cache_backend": given}, OneImplementation(PluginOptions)).cache_backend.options
    assert options == PluginOptions("a", Inner(1), Inner(7), {"0": 1.0}, (Inner(3),), Path.cwd() / "a.txt")
    given = {"use": "x", "required": "a", "fractions": [1, 0.5]}
    assert structure({"cache_backend": given}, OneImplementation(PluginOptions)).cache_backend.options.fractions == (
        1.0,
        0.5,
    )


def test_paths_in_a_table_of_choices(write, tmp_path):
    """The paths of each choice's options are taken from the folder of the file that sets them."""
    write(TABLES_OF_PRECISION, "tables_of_precision.py")
    write('[precision.stacks.0]\nuse = "tabled"\nfile = "low.txt"', "tables/base.toml")
    config = config_of(
        write(
            'extends = "tables/base.toml"\n[run]\nplugins = ["tables_of_precision.py"]\n'
            '[precision.stacks]\n1 = { use = "tabled", file = "high.txt" }\n2 = "tabled"'
        )
    )
    assert {number: choice.options.file for number, choice in config.precision.stacks.items()} == {
        0: str(tmp_path / "configs/tables/low.txt"),
        1: str(tmp_path / "configs/high.txt"),
        2: "none",
    }


def test_mistakes_in_options_of_any_shape():
    """Their mistakes keep their key paths, to the element of an array."""
    given = {"use": "x", "fractions": 3, "many": [{"depth": 3}, {"deph": 4}], "inner": {"depth": "x"}}
    with pytest.raises(ConfigError) as caught:
        structure({"cache_backend": given}, OneImplementation(PluginOptions))
    assert {problem.key: problem.message for problem in caught.value.problems} == {
        "cache_backend.required": "missing: expected a string",
        "cache_backend.inner.depth": 'expected an integer, found the string "x"',
        "cache_backend.fractions": "expected an array of numbers or a table of numbers, found 3",
        "cache_backend.many[1].deph": "unknown key",
    }


def test_a_check_that_breaks():
    """A plugin's own check that fails in an unforeseen way is reported at its key, not as a crash."""

    @frozen
    class Broken:
        ratio: float = option(0.0, "", check=lambda instance, attribute, value: 1 / value)
        other: float = option(0.0, "", check=lambda instance, attribute, value: instance.nothing)

    with pytest.raises(ConfigError) as caught:
        structure({"cache_backend": {"use": "x"}}, OneImplementation(Broken))
    assert [problem.message for problem in caught.value.problems] == [
        "its check failed with ZeroDivisionError: float division by zero",
        "its check failed: 'Broken' object has no attribute 'nothing'",
    ]


def test_checks_of_good_fields_beside_refused_ones(registry):
    """A field of the wrong type doesn't hide that another one is out of range, nor a clash of two further ones."""
    training = {"epochs_per_stack": "x", "batch_size": 0, "weighting": "nelbo", "over": "depth", "unknown": 1}
    with pytest.raises(ConfigError) as caught:
        structure({"training": training}, registry)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "training.unknown",
        "training.epochs_per_stack",
        "training.batch_size",
        "training.weighting",
    }


def test_unknown_selected_plugin(write):
    """A name after -p that nothing has is the registry's own usage error."""
    with pytest.raises(UsageError):
        load(write(""), environ={}, plugins=["no_such_plugin"])
