"""Discovery: from found to declared. Every plugin is loaded by itself, and one that fails becomes a record of why."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import pluggy
from attrs import evolve

from stackwise_core import hookspecs
from stackwise_core.errors import UsageError
from stackwise_core.hookspecs import ENTRY_POINT_GROUP, INTERFACES, Implementation
from stackwise_core.interfaces.command import CORE_COMMANDS
from stackwise_core.registry.blocking import Blocking
from stackwise_core.registry.culprit import LOCAL_MARK
from stackwise_core.registry.foreign_code import foreign_code
from stackwise_core.registry.nearest import nearest
from stackwise_core.registry.records import Declared, Plugin, Problem, Stage
from stackwise_core.registry.working_directory import kept_working_directory

# A plugin may raise anything, or call sys.exit(); only an interrupt is the user's.
_ANYTHING = (Exception, SystemExit)

_MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_SHAPES = {
    "name": (r"[A-Za-z0-9][\w.+-]*", 'a name such as "linear", without spaces and colons'),
    "summary": (r"\S.*", "one line of text"),
    "factory": (rf"{_MODULE}:{_MODULE}", '"package.module:Class"'),
    "options": (rf"{_MODULE}:{_MODULE}", '"package.module:Options"'),
}
# Two letters at least: a text in place of a tuple falls apart into letters.
_DEVICE = r"[a-z][a-z0-9]+"
_PACKAGE = r"[A-Za-z_]\w+(\.[A-Za-z_]\w*)*"
_ALIAS = r"[A-Za-z0-9][\w.+-]+"


def discover(select: Sequence[str], files: Sequence[Path], environ: Mapping[str, str]) -> list[Plugin]:
    """Find and load plugins: the entry points sorted by distribution, then the local files as given.

    Raises:
        UsageError: a file or a name that was asked for isn't there.
    """
    blocking = Blocking.read(select, environ)
    found: list[tuple[Plugin, Callable[[], object]]] = []
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        found.append((_installed(entry_point), entry_point.load))
    found.sort(key=lambda pair: (pair[0].distribution.lower(), pair[0].name))
    for path in _checked(files):
        found.append((Plugin(path.stem, path.stem, None, str(path)), partial(_load_file, path)))
    blocking.check_selected(name for plugin, _ in found for name in (plugin.name, plugin.distribution))

    plugins: list[Plugin] = []
    for plugin, load in found:
        problem = blocking.problem(plugin)
        if problem:
            plugins.append(evolve(plugin, problem=problem))
        else:
            with kept_working_directory():
                loaded = _load(plugin, load)
            plugins.append(_without_repeats(loaded, plugins))
    return plugins


def _installed(entry_point: EntryPoint) -> Plugin:
    return Plugin(
        entry_point.name,
        _metadata(entry_point.dist, "Name") or "(unnamed)",
        _metadata(entry_point.dist, "Version") or "(no version)",
        entry_point.value,
    )


def _metadata(distribution: Distribution | None, key: str) -> str | None:
    # A half-removed distribution has entry points without metadata.
    try:
        return distribution.metadata[key] if distribution else None
    except Exception:
        return None


def _checked(files: Sequence[Path]) -> list[Path]:
    """Return the files in full and each once, if they can be imported under their stems."""
    by_stem: dict[str, Path] = {}
    for path in (file.resolve() for file in files):
        _check_file(path)
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise UsageError(f"plugin files {other} and {path} have the same name. Rename one of them.")
    return list(by_stem.values())


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"plugin file {path} is not there")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UsageError(
            f"plugin file {path}: its name becomes a module's name; expected letters, digits and underscores "
            "before .py, as in my_plugin.py"
        )
    if path.stem in sys.modules:
        taken = getattr(sys.modules[path.stem], "__file__", None) or "built in"
    else:
        spec = importlib.util.find_spec(path.stem)
        if spec is None:
            return
        taken = spec.origin or str(next(iter(spec.submodule_search_locations or ()), "a package"))
    if taken == "built in" or Path(taken).resolve() != path:
        raise UsageError(f'plugin file {path}: the module "{path.stem}" exists already ({taken}). Rename the file.')


def _load_file(path: Path) -> ModuleType:
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__[LOCAL_MARK] = path.name
    # Its factories are "my_plugin:Class", so the import system has to know it.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _load(plugin: Plugin, load: Callable[[], object]) -> Plugin:
    try:
        with foreign_code():
            namespace = load()
    except _ANYTHING as error:
        return _broken(plugin, "import", error, _import_hint(plugin, error))

    # Each has a manager of its own: one that raises ends a whole pluggy call, and one that fails to register
    # may leave something behind.
    manager = pluggy.PluginManager("stackwise")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(namespace, name=plugin.name)
    except _ANYTHING as error:
        return _broken(plugin, "hook", error, "A hook takes no arguments.")

    for hook in INTERFACES:
        for hookimpl in getattr(manager.hook, hook).get_hookimpls():
            try:
                with foreign_code():
                    result = hookimpl.function()
            except _ANYTHING as error:
                return _broken(plugin, "hook", error, f"{_raised_at(error)}, in {hook}().")
            fault = _fault(result) or _shadow(hook, result)
            if fault:
                return _misdeclared(plugin, f"{hook}() {fault}", "Its author can mend it.")
            declared = (Declared(hook, each, plugin.name, plugin.distribution, plugin.version) for each in result)
            plugin = evolve(plugin, declared=(*plugin.declared, *declared))

    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        return _broken(plugin, "hook", error, _misspelt_hint(manager))
    if not manager.get_hookcallers(namespace):
        return _misdeclared(plugin, "it has no hook", _no_hook_hint(namespace))
    return plugin


def _fault(result: object) -> str | None:
    """Return what is wrong with the value that a hook returned."""
    if not isinstance(result, list):
        return f"returned {_a(result)}; expected a list of Implementation"
    names = set()
    for place, each in enumerate(result):
        if not isinstance(each, Implementation):
            return f"returned a list with {_a(each)} at {place}; expected Implementation"
        for field, (shape, expected) in _SHAPES.items():
            value = getattr(each, field)
            if not isinstance(value, str) or not re.fullmatch(shape, value):
                return f"returned an Implementation whose {field} is {value!r}; expected {expected}"
        for field, shape, expected in (
            ("devices", _DEVICE, '("cpu", "cuda")'),
            ("packages", _PACKAGE, '("peft",)'),
            ("aliases", _ALIAS, '("half",)'),
        ):
            for value in getattr(each, field):
                if not isinstance(value, str) or not re.fullmatch(shape, value):
                    return f'returned "{each.name}" with {value!r} in {field}; expected a tuple such as {expected}'
        if not isinstance(each.api, int) or isinstance(each.api, bool):
            return f'returned "{each.name}" with api = {each.api!r}; expected an integer'
        for name in (each.name, *each.aliases):
            if name in names:
                return f'returned "{name}" twice'
            names.add(name)
    return None


def _shadow(hook: str, result: Sequence[Implementation]) -> str | None:
    """Return what is wrong with a command that has a core command's name; None where nothing is."""
    names = [name for each in result for name in (each.name, *each.aliases)] if hook == "command" else []
    return next((f'returned "{name}", which is a command of the core' for name in names if name in CORE_COMMANDS), None)


def _a(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _without_repeats(plugin: Plugin, earlier: Sequence[Plugin]) -> Plugin:
    """Mark a plugin as broken that repeats a name of its distribution.

    No ``distribution:name`` could tell the two apart.
    """
    taken = {
        (declared.distribution, declared.hook, name): other.name
        for other in earlier
        if other.problem is None
        for declared in other.declared
        for name in declared.names
    }
    for declared in plugin.declared:
        for name in declared.names:
            other_name = taken.get((declared.distribution, declared.hook, name))
            if other_name is not None and plugin.problem is None:
                message = f'{declared.hook}() returned "{name}", which its plugin "{other_name}" has already'
                return _misdeclared(plugin, message, "Its author can mend it.")
    return plugin


def _broken(plugin: Plugin, stage: Stage, error: BaseException, hint: str) -> Plugin:
    text = " ".join(str(error).split()).rstrip(".")
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return evolve(plugin, problem=Problem(stage, message, hint, error))


def _misdeclared(plugin: Plugin, message: str, hint: str) -> Plugin:
    return evolve(plugin, problem=Problem("declaration", message, hint))


def _import_hint(plugin: Plugin, error: BaseException) -> str:
    leave_out = f"-p no:{plugin.name} leaves it out."
    missing = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None
    if missing and missing == plugin.source.partition(":")[0].partition(".")[0]:
        return f"Its entry point names a module that is not there: reinstall {plugin.distribution}."
    if missing == "stackwise_core" or (isinstance(error, ImportError) and "stackwise_core" in str(error)):
        return "It was written for another version of stackwise-core."
    if missing:
        return f"Install the module {missing}, or leave the plugin out with -p no:{plugin.name}."
    return f"{_raised_at(error)}; {leave_out}"


def _raised_at(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return f"Raised at {frames[-1].filename}:{frames[-1].lineno}"


def _misspelt_hint(manager: pluggy.PluginManager) -> str:
    unknown = [name for name, caller in vars(manager.hook).items() if not caller.has_spec()]
    close = nearest(unknown[0], INTERFACES)
    guess = f"Did it mean {close}()? " if close else ""
    return f"{guess}The hooks are {', '.join(INTERFACES)}."


def _no_hook_hint(namespace: object) -> str:
    plain = next((hook for hook in INTERFACES if callable(getattr(namespace, hook, None))), None)
    return f"{plain}() lacks the decorator @hookimpl." if plain else "A hook is a function under @hookimpl."
