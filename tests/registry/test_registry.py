"""From declared to resolved to built."""

import sys

import pytest

from stackwise_core.errors import UnavailableError, UsageError
from stackwise_core.registry import (
    AmbiguousImplementation,
    BlockedPlugin,
    BrokenPlugin,
    FailedImplementation,
    MissingPackages,
    NotInstalled,
    OtherHookApi,
    Registry,
    UnknownImplementation,
    WrongDevice,
)


@pytest.fixture
def registry_with(install, hook_source, implementation_source):
    """A registry with one third-party schedule, whose record and module the test changes."""

    def registry_with(source=implementation_source, **fields):
        modules = {"sine_hooks": hook_source(**fields), "somebody": source}
        install("stackwise-sine", modules, {"sine": "sine_hooks"})
        return Registry.discover(environ={})

    return registry_with


def test_an_unknown_name_has_a_nearest_one():
    """The error carries what is known and what was probably meant."""
    with pytest.raises(UnknownImplementation) as caught:
        Registry.discover(environ={}).resolve("mask_schedule", "Liner")
    error = caught.value
    assert (error.hook, error.use, error.nearest) == ("mask_schedule", "Liner", "linear")
    assert set(error.known) >= {"constant", "cosine", "exponential", "linear"}
    assert str(error).startswith('unknown mask_schedule "Liner". Did you mean "linear"? Installed: constant, ')
    assert error.exit_code == 2


def test_an_unknown_name_may_be_near_one_that_is_not_installed():
    """The nearest name comes with the package that has it."""
    with pytest.raises(UnknownImplementation, match='"lora" needs the package stackwise-peft') as caught:
        Registry([]).resolve("adapter", "loral")
    assert caught.value.nearest == "lora"
    assert "No adapter is installed." in str(caught.value)


def test_a_name_of_another_hook_is_pointed_out():
    """A precision where a schedule is expected is said to be a precision."""
    with pytest.raises(UnknownImplementation, match='"bf16" is a name of precision'):
        Registry.discover(environ={}).resolve("mask_schedule", "bf16")


def test_a_known_name_that_is_not_installed_names_its_package():
    """It is exit code 3, with the command that installs it."""
    for hook, name, package in (
        ("adapter", "lora", "stackwise-peft"),
        ("precision", "qlora", "stackwise-bitsandbytes"),
        ("precision", "half", "stackwise-precision"),
    ):
        with pytest.raises(NotInstalled, match=f"pip install {package}") as caught:
            Registry([]).resolve(hook, name)
        assert caught.value.exit_code == 3


def test_a_known_name_of_a_later_version_asks_for_an_upgrade(install, hook_source):
    """Where the package is there without the name, the error says so."""
    install("stackwise-lmdb", {"lmdb_hooks": hook_source()}, {"lmdb": "lmdb_hooks"})
    with pytest.raises(NotInstalled, match=r"is not in stackwise-lmdb 1\.0; .* pip install --upgrade stackwise-lmdb"):
        Registry.discover(environ={}).resolve("cache_backend", "lmdb")


def test_two_distributions_of_one_name_are_an_error_only_when_it_is_used(registry_with):
    """The other names work; distribution:name settles it, however the distribution is spelt."""
    registry = registry_with(name="linear")
    assert registry.resolve("mask_schedule", "cosine").name == "cosine"
    with pytest.raises(AmbiguousImplementation, match='use = "stackwise-sine:linear"') as caught:
        registry.resolve("mask_schedule", "linear")
    assert caught.value.exit_code == 2
    assert registry.resolve("mask_schedule", "Stackwise_Sine:linear").distribution == "stackwise-sine"
    assert registry.resolve("mask_schedule", "stackwise-masking:linear").distribution == "stackwise-masking"
    states = {declared.full_name: registry.state(declared) for declared in registry.implementations("mask_schedule")}
    assert states["stackwise-sine:linear"] == states["stackwise-masking:linear"] == "ambiguous"
    assert states["stackwise-masking:cosine"] == "ready"


def test_an_alias_is_a_name(registry_with):
    """It resolves, alone and with its distribution, is listed as known, and is near to a misspelt one."""
    registry = registry_with(aliases=("wave", "sinus"))
    for use in ("sine", "wave", "sinus", "Stackwise_Sine:wave"):
        assert registry.resolve("mask_schedule", use).full_name == "stackwise-sine:sine"
        assert [declared.name for declared in registry.named(use)] == ["sine"]
    with pytest.raises(UnknownImplementation) as caught:
        registry.resolve("mask_schedule", "wafe")
    assert caught.value.nearest == "wave"
    assert {"sine", "sinus", "wave"} <= set(caught.value.known)
    with pytest.raises(UnknownImplementation) as caught:
        registry.resolve("mask_schedule", "stackwise-sin:wave")
    assert caught.value.nearest == "stackwise-sine:wave"
    with pytest.raises(UnknownImplementation, match='"wave" is a name of mask_schedule'):
        registry.resolve("precision", "wave")
    with pytest.raises(UsageError, match='Did you mean "wave"'):
        registry.named("wafe")


def test_an_alias_that_two_distributions_have(install, hook_source, registry_with):
    """It is ambiguous when used, whether the other has it for an alias or for its name; the other names work."""
    install("stackwise-other", {"other_hooks": hook_source("ripple", aliases=("wave",))}, {"other": "other_hooks"})
    registry = registry_with(aliases=("wave", "linear"))
    for asked in ("wave", "linear"):
        with pytest.raises(AmbiguousImplementation, match=f'use = "stackwise-sine:{asked}"'):
            registry.resolve("mask_schedule", asked)
        assert registry.resolve("mask_schedule", f"stackwise-sine:{asked}").name == "sine"
    assert registry.resolve("mask_schedule", "sine").name == "sine"
    states = {declared.name: registry.state(declared) for declared in registry.implementations("mask_schedule")}
    assert states["sine"] == "ambiguous (wave, linear)"
    assert (states["ripple"], states["linear"], states["cosine"]) == ("ambiguous (wave)", "ambiguous", "ready")


def test_an_alias_of_a_broken_plugin_is_its_own(install, hook_source):
    """A plugin that declared an alias before it broke is the reason why that is missing."""
    source = hook_source(aliases=("wave",)) + "\n@hookimpl\ndef adaptor(): return []\n"
    install("somebody-s", {"wave_hooks": source}, {"s": "wave_hooks"})
    registry = Registry.discover(environ={})
    with pytest.raises(BrokenPlugin, match="adaptor"):
        registry.resolve("mask_schedule", "wave")
    with pytest.raises(BrokenPlugin, match="adaptor"):
        registry.named("wave")


def test_a_wrong_distribution_is_unknown():
    """distribution:name of nobody suggests the one that has the name."""
    with pytest.raises(UnknownImplementation) as caught:
        Registry.discover(environ={}).resolve("mask_schedule", "stackwise-maskin:linear")
    assert caught.value.nearest == "stackwise-masking:linear"


def test_a_blocked_plugin_is_why_its_name_is_missing():
    """The error names the plugin and what blocked it."""
    registry = Registry.discover(select=["no:cache"], environ={})
    with pytest.raises(BlockedPlugin, match=r'cache_backend "disk": .* is blocked by -p no:cache'):
        registry.resolve("cache_backend", "disk")


@pytest.mark.parametrize("use", ["sine", "stackwise-sine:anything"])
def test_a_broken_plugin_is_the_error_once_it_is_used(install, use):
    """A name that seems to be the broken plugin's fails with the plugin's own exception as the cause."""
    install("stackwise-sine", {"sine_hooks": "1/0"}, {"waves": "sine_hooks"})
    registry = Registry.discover(environ={})
    with pytest.raises(BrokenPlugin, match="failed at import: ZeroDivisionError") as caught:
        registry.resolve("mask_schedule", use)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.exit_code == 3


def test_what_a_plugin_declared_before_it_broke_is_remembered(install, hook_source):
    """A name that was declared belongs to the broken plugin for certain."""
    source = hook_source("wave") + "\n@hookimpl\ndef adaptor(): return []\n"
    install("somebody-s", {"wave_hooks": source}, {"s": "wave_hooks"})
    with pytest.raises(BrokenPlugin, match=r"Did it mean adapter\(\)\?"):
        Registry.discover(environ={}).resolve("mask_schedule", "wave")


def test_an_unrelated_broken_plugin_is_only_mentioned(install):
    """A misspelt name stays a usage error."""
    install("stackwise-bad", {"bad_hooks": "1/0"}, {"bad": "bad_hooks"})
    with pytest.raises(UnknownImplementation, match=r"Not loaded: stackwise-bad 1\.0 \(broken\)"):
        Registry.discover(environ={}).resolve("mask_schedule", "liner")


def test_another_hook_api_is_unavailable(registry_with):
    """An implementation for a later core is listed so, and refused when used."""
    registry = registry_with(api=2)
    with pytest.raises(OtherHookApi, match="version 2 of the hook API; this Stackwise has version 1"):
        registry.resolve("mask_schedule", "sine")
    assert [registry.state(declared) for declared in registry.named("sine")] == ["other API (2)"]


def test_missing_packages_are_unavailable_and_none_is_imported(registry_with):
    """Needed modules are looked for, not imported."""
    sys.modules.pop("antigravity", None)
    registry = registry_with(packages=("antigravity", "not_there", "nor.this"))
    with pytest.raises(MissingPackages, match=r"needs not_there, nor\.this, which are not installed"):
        registry.resolve("mask_schedule", "sine")
    assert "antigravity" not in sys.modules
    assert [registry.state(declared) for declared in registry.named("sine")] == ["needs not_there, nor.this"]


def test_build_makes_the_object_from_its_options(registry_with):
    """The factory is imported only now, and holds the options that it was given."""
    registry = registry_with()
    declared = registry.resolve("mask_schedule", "sine")
    assert "somebody" not in sys.modules
    options = registry.options_class(declared)(slope=3.0)
    assert registry.build(declared, options, device="cuda:1").options is options


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_built_knows_where_it_comes_from(registry_with, implementation_source, frozen):
    """Messages about it name hook, implementation and distribution, also where its class is frozen."""
    source = implementation_source
    if frozen:
        source = source.replace("class Sine", "@frozen(slots=False)\nclass Sine") + "    options: object\n"
    registry = registry_with(source)
    built = registry.build(registry.resolve("mask_schedule", "sine"), None)
    assert built.origin == 'mask_schedule "sine" of stackwise-sine 1.0'


def test_build_refuses_a_device_that_the_implementation_has_not(registry_with):
    """The reason names both, and nothing is imported for it."""
    registry = registry_with(devices=("cuda",))
    declared = registry.resolve("mask_schedule", "sine")
    with pytest.raises(WrongDevice, match="runs on cuda, not on cpu"):
        registry.build(declared, None, device="cpu")
    assert "somebody" not in sys.modules


@pytest.mark.parametrize(
    ("source", "stage", "reason", "cause"),
    [
        ("1/0", "factory", "somebody:Sine: ZeroDivisionError", ZeroDivisionError),
        ("Options = 1", "factory", "AttributeError", AttributeError),
        ("class Sine: pass", "factory", "no subclass of stackwise_core.interfaces.mask_schedule.MaskSchedule", None),
        ("def Sine(options): pass", "factory", "no subclass of", None),
        (
            "from stackwise_core.interfaces.mask_schedule import MaskSchedule as Sine",
            "build",
            "Can't instantiate abstract class",
            TypeError,
        ),
        (
            "from stackwise_core.interfaces.mask_schedule import MaskSchedule\n"
            "class Sine(MaskSchedule):\n"
            "    def fraction(self, progress): return progress\n"
            "    def __init__(self, options): options['gone']\n",
            "build",
            "KeyError: 'gone'",
            KeyError,
        ),
    ],
)
def test_a_factory_that_fails_names_plugin_and_stage(registry_with, source, stage, reason, cause):
    """The plugin's own exception is the cause, the message says whose it is."""
    registry = registry_with(source)
    with pytest.raises(FailedImplementation) as caught:
        registry.build(registry.resolve("mask_schedule", "sine"), {})
    assert f'(plugin "sine" of stackwise-sine 1.0, stage: {stage})' in str(caught.value)
    assert reason in str(caught.value)
    assert type(caught.value.__cause__) is (type(None) if cause is None else cause)


def test_a_factory_may_refuse_in_its_own_words(registry_with, implementation_source):
    """A StackwiseError of the plugin reaches the user as it is."""
    refusal = "    def __init__(self, options): raise UnavailableError('needs compute capability 9')\n"
    source = "from stackwise_core.errors import UnavailableError\n" + implementation_source + refusal
    registry = registry_with(source)
    with pytest.raises(UnavailableError, match=r"^needs compute capability 9$"):
        registry.build(registry.resolve("mask_schedule", "sine"), None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [("1/0", "ZeroDivisionError"), ("class Options: pass", "is no attrs class"), ("Options = 1", "is no attrs class")],
)
def test_options_must_be_an_attrs_class(registry_with, source, reason):
    """Anything else fails at the stage options."""
    registry = registry_with(source)
    with pytest.raises(FailedImplementation, match=f"stage: options.*{reason}"):
        registry.options_class(registry.resolve("mask_schedule", "sine"))


def test_named_finds_a_name_at_every_hook(install, hook_source):
    """One name at two hooks is two answers; a name of nobody has a nearest one."""
    install("stackwise-sine", {"sine_hooks": hook_source("bf16")}, {"sine": "sine_hooks"})
    registry = Registry.discover(environ={})
    assert {declared.hook for declared in registry.named("bf16")} == {"mask_schedule", "precision"}
    assert [declared.hook for declared in registry.named("stackwise-sine:bf16")] == ["mask_schedule"]
    with pytest.raises(UsageError, match='Did you mean "linear"'):
        registry.named("liner")
    with pytest.raises(NotInstalled):
        Registry([]).named("lmdb")
