"""From found to declared, with real entry points."""

import sys

import pytest

from stackwise_core.errors import UsageError
from stackwise_core.registry import BrokenPlugin, Registry


def plugin(registry, name):
    return next(plugin for plugin in registry.plugins if plugin.name == name)


def names(registry, hook="mask_schedule"):
    return [declared.name for declared in registry.implementations(hook)]


def test_our_own_plugins_are_declared(install, hook_source):
    """The workspace's distributions are found, and sorted by distribution with all others."""
    install("zigzag", {"zigzag_hooks": hook_source()}, {"a_first_name": "zigzag_hooks"}, version="0.0.1")
    registry = Registry.discover(environ={})
    ours = [each.distribution for each in registry.plugins]
    assert ours == sorted(ours)
    assert set(ours) >= {"stackwise-cache", "stackwise-masking", "stackwise-modes", "stackwise-precision"}
    assert {each.state for each in registry.plugins} == {"declared"}
    assert [declared.full_name for declared in registry.implementations("cache_backend")] == [
        "stackwise-cache:memory",
        "stackwise-cache:disk",
        "stackwise-lmdb:lmdb",
    ]


def test_a_third_party_is_declared_with_its_version(install, hook_source):
    """An installed distribution's implementation carries where it comes from."""
    install("stackwise-sine", {"sine_hooks": hook_source()}, {"sine": "sine_hooks"}, version="2.5")
    declared = Registry.discover(environ={}).resolve("mask_schedule", "sine")
    assert (declared.plugin, declared.distribution, declared.version) == ("sine", "stackwise-sine", "2.5")
    assert declared.package == "stackwise-sine 2.5"


@pytest.mark.parametrize(
    ("source", "stage", "message", "hint"),
    [
        ("1/0", "import", "ZeroDivisionError: division by zero", "hooks_of_bad.py:1"),
        ("import sys; sys.exit(3)", "import", "SystemExit: 3", "-p no:bad leaves it out"),
        ("import not_there", "import", "ModuleNotFoundError", "Install the module not_there"),
        ("from stackwise_core.hookspecs import NewThing", "import", "NewThing", "another version of stackwise-core"),
        ("def f(:", "import", "SyntaxError", ""),
        (
            "from stackwise_core.hookspecs import *\n@hookimpl\ndef mask_shedule(): return []",
            "hook",
            "mask_shedule",
            "Did it mean mask_schedule()?",
        ),
        (
            "from stackwise_core.hookspecs import *\n@hookimpl\ndef precision(device): return []",
            "hook",
            "device",
            "takes no arguments",
        ),
        (
            "from stackwise_core.hookspecs import *\n@hookimpl\ndef precision(): raise KeyError('x')",
            "hook",
            "KeyError: 'x'",
            "hooks_of_bad.py:3, in precision()",
        ),
        ("def adapter(): return []", "declaration", "it has no hook", "adapter() lacks the decorator @hookimpl"),
        ("", "declaration", "it has no hook", "A hook is a function under @hookimpl"),
    ],
)
def test_a_broken_plugin_is_recorded_and_harms_nobody(install, source, stage, message, hint):
    """Whatever a plugin does on loading, it is listed with its stage and reason, and the others work."""
    install("stackwise-bad", {"hooks_of_bad": source}, {"bad": "hooks_of_bad"})
    registry = Registry.discover(environ={})
    bad = plugin(registry, "bad")
    assert (bad.state, bad.distribution, bad.version) == ("broken", "stackwise-bad", "1.0")
    assert bad.problem.stage == stage
    assert message in bad.problem.message
    assert hint in bad.problem.hint
    assert registry.resolve("mask_schedule", "linear").distribution == "stackwise-masking"


def test_an_entry_point_to_nowhere_asks_for_a_reinstallation(install):
    """A module that the entry point names, but isn't there, is the distribution's own fault."""
    install("stackwise-bad", {}, {"bad": "nowhere.hooks"})
    assert "reinstall stackwise-bad" in plugin(Registry.discover(environ={}), "bad").problem.hint


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ("None", "returned None; expected a list of Implementation"),
        ("{}", "returned a dict; expected a list of Implementation"),
        ("GOOD", "returned an Implementation; expected a list"),
        ("[GOOD, 'sine']", "a list with a str at 1"),
        ("[GOOD, GOOD]", 'returned "sine" twice'),
        ("[evolve(GOOD, name='a b')]", "whose name is 'a b'"),
        ("[evolve(GOOD, name='a:b')]", "whose name is 'a:b'"),
        ("[evolve(GOOD, summary='')]", "whose summary is ''"),
        ("[evolve(GOOD, summary='one\\ntwo')]", "whose summary is"),
        ("[evolve(GOOD, factory='somebody.Sine')]", 'expected "package.module:Class"'),
        ("[evolve(GOOD, options=dict)]", 'expected "package.module:Options"'),
        ("[evolve(GOOD, api='1')]", "api = '1'; expected an integer"),
        ("[evolve(GOOD, devices='cuda')]", "'c' in devices; expected a tuple"),
        ("[evolve(GOOD, packages='peft')]", "'p' in packages; expected a tuple"),
        ("[evolve(GOOD, aliases='half')]", """'h' in aliases; expected a tuple such as ("half",)"""),
        ("[evolve(GOOD, aliases=('a:b',))]", "'a:b' in aliases"),
        ("[evolve(GOOD, aliases=('wave', 3))]", "3 in aliases"),
        ("[evolve(GOOD, aliases=('sine',))]", 'returned "sine" twice'),
        ("[evolve(GOOD, aliases=('wave', 'wave'))]", 'returned "wave" twice'),
        ("[evolve(GOOD, aliases=('wave',)), evolve(GOOD, name='wave')]", 'returned "wave" twice'),
        ("[GOOD, evolve(GOOD, name='wave', aliases=('sine',))]", 'returned "sine" twice'),
    ],
)
def test_what_a_hook_returns_is_checked(install, result, fault):
    """A hook that returns anything but a list of sound records breaks its plugin, with what was expected."""
    source = (
        "from attrs import evolve\nfrom stackwise_core.hookspecs import *\n"
        "GOOD = Implementation('sine', 'Of somebody', 'somebody:Sine', 'somebody:Options')\n"
        f"@hookimpl\ndef mask_schedule(): return {result}\n"
    )
    install("stackwise-bad", {"hooks_of_bad": source}, {"bad": "hooks_of_bad"})
    bad = plugin(Registry.discover(environ={}), "bad")
    assert bad.problem.stage == "declaration"
    assert fault in bad.problem.message


def test_a_later_hook_may_be_optional(install, hook_source):
    """A hook that this core doesn't know is no mistake where the plugin says so."""
    source = hook_source() + "\n@hookimpl(optionalhook=True)\ndef backbone(): return []\n"
    install("stackwise-new", {"hooks_of_new": source}, {"new": "hooks_of_new"})
    assert plugin(Registry.discover(environ={}), "new").state == "declared"


@pytest.mark.parametrize("second", [{}, {"name": "cosecant", "aliases": ("sine",)}])
def test_two_plugins_of_one_distribution_may_not_share_a_name(install, hook_source, second):
    """The second one is broken, since no distribution:name could settle it; the first still works."""
    modules = {"hooks_one": hook_source(), "hooks_two": hook_source(**second)}
    install("stackwise-twice", modules, {"one": "hooks_one", "two": "hooks_two"})
    registry = Registry.discover(environ={})
    assert (
        plugin(registry, "two").problem.message == 'mask_schedule() returned "sine", which its plugin "one" has already'
    )
    assert registry.resolve("mask_schedule", "sine").plugin == "one"


@pytest.mark.parametrize(
    ("select", "environ", "reason"),
    [
        (["no:sine"], {}, "blocked by -p no:sine"),
        (["no:Stackwise_Sine"], {}, "blocked by -p no:stackwise-sine"),
        ([], {"STACKWISE_DISABLE_PLUGINS": "cache, sine"}, "blocked by STACKWISE_DISABLE_PLUGINS"),
        ([], {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, "blocked by STACKWISE_PLUGIN_AUTOLOAD=0"),
        (["masking"], {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, "blocked by STACKWISE_PLUGIN_AUTOLOAD=0"),
        (["sine", "no:sine"], {}, "blocked by -p no:sine"),
        (["sine"], {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, None),
        (["stackwise-sine"], {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, None),
        (["sine"], {"STACKWISE_DISABLE_PLUGINS": "sine"}, None),
        ([], {"STACKWISE_PLUGIN_AUTOLOAD": "1"}, None),
    ],
)
def test_blocking_comes_before_import(install, hook_source, select, environ, reason):
    """A blocked plugin's module is never imported, and the record says what blocked it."""
    install("stackwise-sine", {"sine_hooks": hook_source()}, {"sine": "sine_hooks"})
    sine = plugin(Registry.discover(select=select, environ=environ), "sine")
    assert ("sine_hooks" in sys.modules) == (reason is None)
    assert (sine.problem and sine.problem.message) == reason
    assert sine.state == ("blocked" if reason else "declared")


def test_a_misspelt_selection_is_refused():
    """-p NAME of nothing that is installed names the nearest plugin."""
    with pytest.raises(UsageError, match=r'-p maskin: .* Did you mean "masking"\?'):
        Registry.discover(select=["maskin"], environ={})


def test_a_misspelt_switch_is_refused():
    """STACKWISE_PLUGIN_AUTOLOAD takes 0 and 1."""
    with pytest.raises(UsageError, match='STACKWISE_PLUGIN_AUTOLOAD is "never"; expected 0 or 1'):
        Registry.discover(environ={"STACKWISE_PLUGIN_AUTOLOAD": "never"})


def local_plugin(tmp_path, hook_source, implementation_source, stem="local_sine"):
    path = tmp_path / f"{stem}.py"
    path.write_text(hook_source(module=stem) + implementation_source)
    return path


@pytest.mark.usefixtures("install")  # which forgets the modules of the test
def test_a_local_file_is_a_plugin(tmp_path, hook_source, implementation_source):
    """A file's hooks are declared, and its factories resolve through its stem; loading it again changes nothing."""
    path = local_plugin(tmp_path, hook_source, implementation_source)
    for environ in ({}, {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, {}):
        registry = Registry.discover(files=[path, path], environ=environ)
        declared = registry.resolve("mask_schedule", "local_sine:sine")
        assert (declared.version, declared.package) == (None, "local_sine.py")
        built = registry.build(declared, registry.options_class(declared)(slope=2.0))
        assert type(built) is sys.modules["local_sine"].Sine
        assert built.options.slope == 2.0


@pytest.mark.usefixtures("install")
def test_a_local_file_that_raises_is_broken(tmp_path):
    """It is recorded with the line that raised, leaves no module behind, and is why a name is missing."""
    path = tmp_path / "half_made.py"
    path.write_text("x = 1\nraise ValueError('not today')\n")
    registry = Registry.discover(files=[path], environ={})
    half_made = plugin(registry, "half_made")
    assert half_made.problem.message == "ValueError: not today"
    assert f"{path}:2" in half_made.problem.hint
    assert "half_made" not in sys.modules
    with pytest.raises(BrokenPlugin, match="ValueError: not today"):
        registry.resolve("mask_schedule", "anything")


@pytest.mark.usefixtures("install")
def test_files_that_cannot_be_plugins_are_refused(tmp_path, hook_source, implementation_source):
    """A missing file, a name that is no module's, and a name that is taken are each one clear error."""
    (tmp_path / "other").mkdir()
    first = local_plugin(tmp_path, hook_source, implementation_source, "twin")
    second = local_plugin(tmp_path / "other", hook_source, implementation_source, "twin")
    for files, message in (
        ([tmp_path / "gone.py"], r"plugin file .*gone\.py is not there"),
        ([local_plugin(tmp_path, hook_source, implementation_source, "my-sine")], "expected letters, digits"),
        ([local_plugin(tmp_path, hook_source, implementation_source, "json")], r'"json" exists already .*Rename'),
        ([local_plugin(tmp_path, hook_source, implementation_source, "sys")], '"sys" exists already'),
        ([local_plugin(tmp_path, hook_source, implementation_source, "antigravity")], '"antigravity" exists already'),
        ([first, second], "have the same name"),
    ):
        with pytest.raises(UsageError, match=message):
            Registry.discover(files=files, environ={})
