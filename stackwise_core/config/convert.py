"""Strict conversion of plain TOML values to attrs classes: no coercion, no unknown keys, all faults are kept."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter, IterableValidationError, IterableValidationNote
from cattrs.errors import AttributeValidationNote, BaseValidationError, ClassValidationError

from stackwise_core.config.choices import PLACED_HOOKS, key_type
from stackwise_core.config.cross_checks import cross_checks
from stackwise_core.config.defaults import default_of
from stackwise_core.config.layers import KeyPath
from stackwise_core.config.locate import Part
from stackwise_core.config.model import Choice, Config
from stackwise_core.config.value_synonyms import same_as
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from stackwise_core.options import ByteSize
from stackwise_core.registry import Registry
from stackwise_core.registry.nearest import nearest
from stackwise_core.words import a, either, found, noun, shown, with_article

_TABLE_OR_NAME, _STRING_OR_TABLE = "a table with `use`, or a name", "a string, or a table with `use`"
_INT64 = range(-(2**63), 2**63)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BOOLEAN_OR_NUMBER = re.compile(r"true|false|[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


class Fault(Exception):
    """One fault of a value; its path is in cattrs' notes on the exceptions around it."""

    def __init__(
        self,
        message: str,
        *,
        part: Part = "value",
        help: str = "",
        known: Iterable[str] | None = None,
        siblings: Iterable[str] = (),
        others: Iterable[KeyPath] = (),
        unavailable: UnavailableError | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.part: Part = part
        self.help = help
        self.known = None if known is None else tuple(known)
        """Keys that the table of an unknown key knows."""
        self.siblings = tuple(siblings)
        """Keys of the same table that may be to blame as well."""
        self.others = tuple(others)
        """Keys of other tables that may be."""
        self.unavailable = unavailable

    def culprits(self, path: KeyPath) -> list[KeyPath]:
        """List the keys that may be to blame, the fault's own first."""
        return [path, *((*path[:-1], sibling) for sibling in self.siblings), *self.others]


def convert(data: Any, registry: Registry, hooks: Collection[str] | None = None) -> Config:
    """Convert a plain dict, as tomli gives it, to the configuration.

    Args:
        hooks: those whose implementations are asked for; None: all. Options of the others stay as they are written.

    Raises:
        ClassValidationError: holds everything that is wrong; ``faults`` flattens it.
    """
    return _Tables(registry, hooks).read(data, Config)


def convert_options(data: Mapping[str, Any], options: type, registry: Registry) -> Any:
    """Convert a plain dict to an instance of an options class.

    Raises:
        ClassValidationError: as ``convert``.
    """
    return _Tables(registry, None).read(data, options, kind="option")


def convert_choice(table: Mapping[str, Any], hook: str, registry: Registry) -> Choice:
    """Return a table with ``use`` as a choice.

    Raises:
        ClassValidationError: as ``convert``.
        Fault: it is no such table.
    """
    return _Tables(registry, None)._choice(table, hook)


def faults(error: Exception, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Fault]]:
    """Yield all faults in what ``convert`` raised, each with its key path."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            path = (*path, note.name)
        elif isinstance(note, IterableValidationNote):
            path = (*path, note.index)
    if isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            yield from faults(inner, path)
    else:
        yield path, error if isinstance(error, Fault) else Fault(f"can't be read: {type(error).__name__}: {error}")


class _Refused(ClassValidationError):
    """Marker of a table with faults."""

    partial: Any
    """An instance that lacks the attributes which were refused, for the checks that need the others."""


class _Tables:
    """The strict converter, with the registry that it asks for the options of a hook's implementation."""

    def __init__(self, registry: Registry, hooks: Collection[str] | None) -> None:
        self.registry, self.hooks = registry, hooks
        self.converter = Converter()
        for type_, hook in _STRICT.items():
            self.converter.register_structure_hook(type_, hook)
        for predicate, factory in (
            (lambda type_: get_origin(type_) is Literal, _literal),
            (lambda type_: get_origin(type_) in (Union, UnionType), _union),
            (lambda type_: get_origin(type_) in (tuple, list), _array),
            (lambda type_: get_origin(type_) is dict, _mapping),
        ):
            self.converter.register_structure_hook_factory(predicate, partial(factory, converter=self.converter))
        self.converter.register_structure_hook_func(attrs.has, self.read)

    def read(self, value: Any, table: type, kind: str = "key") -> Any:
        """Read one table as an instance of its class; ``kind`` is what its keys are called in errors."""
        if not isinstance(value, Mapping):
            raise Fault(f"expected a table, found {found(value)}", help=_array_of_tables(value))
        attrs.resolve_types(table)
        known = {attribute.name: attribute for attribute in attrs.fields(table) if attribute.init}
        values: dict[str, Any] = {}
        partial_tables: dict[str, Any] = {}
        errors = [
            _noted(Fault(f"unknown {'table' if table is Config else kind}", part="key", known=known), key, table)
            for key in value
            if key not in known
        ]
        for name, attribute in known.items():
            given = value.get(name, attrs.NOTHING)
            try:
                values[name] = self._field(attribute, given)
            except Exception as error:
                errors.append(_noted(error, name, table))
                if isinstance(error, _Refused):
                    partial_tables[name] = error.partial
        instance: Any = object.__new__(table)
        for name, content in {**values, **partial_tables}.items():
            object.__setattr__(instance, name, content)
        if len(values) == len(known):
            try:
                with attrs.validators.disabled():
                    instance = table(**{known[name].alias: content for name, content in values.items()})
            except (ValueError, TypeError) as error:
                errors.append(Fault(str(error)))
        refused_by_check: dict[str, Fault] = {}
        for name in values:
            try:
                fault = _check(instance, known[name], set(known), is_default=name not in value)
            except AttributeError as error:
                # It looked at a field that was refused, and whose fault is listed already.
                fault = None if len(values) < len(known) else Fault(f"its check failed: {error}")
            # A field may only be wrong because the one that it is measured by is.
            if fault and not any(sibling in refused_by_check for sibling in fault.siblings):
                refused_by_check[name] = fault
                errors.append(_noted(fault, name, table))
        if table is Config:
            errors += [_across(keys, message) for keys, message in cross_checks(instance)]
        if errors:
            refused = _Refused(f"{table.__name__} can't be read", errors, table)
            refused.partial = instance
            raise refused
        return instance

    def _field(self, attribute: "attrs.Attribute[Any]", given: Any) -> Any:
        if given is attrs.NOTHING:
            default = default_of(attribute)
            if default is attrs.NOTHING:
                expected = str if attribute.metadata.get("alone") else attribute.type
                raise Fault(f"missing: expected {a(expected)}", part="key")
            if not isinstance(default, dict) or get_origin(attribute.type) is dict or attribute.type is dict:
                return default
            given = default
        if hook := attribute.metadata.get("hook"):
            if keys := key_type(attribute):
                return self._choices(given, hook, keys)
            return self._choice(given, hook, _STRING_OR_TABLE if attribute.metadata["alone"] else _TABLE_OR_NAME)
        return self.converter.structure(given, attribute.type)  # type: ignore[arg-type]

    def _choices(self, value: Any, hook: str, keys: type) -> dict[Any, Choice]:
        kind = f"table of {hook}s by {'whole number' if keys is int else 'name'}"
        if not isinstance(value, Mapping):
            alone = "for stack 3 alone: { 3 = %s }" if keys is int else "under a name of your own: { mine = %s }"
            help = alone % shown(value) if isinstance(value, str) else _array_of_tables(value)
            raise Fault(f"expected a {kind}, found {found(value)}", help=help)
        read_key = _stack_number if keys is int else str
        return _contents(value, read_key, partial(self._choice, hook=hook), Choice, kind)

    def _choice(self, value: Any, hook: str, expected: str = _TABLE_OR_NAME) -> Choice:
        if not isinstance(value, Mapping):
            raise Fault(f"expected {expected}, found {found(value)}", help=_array_of_tables(value))
        use = value.get("use", attrs.NOTHING)
        errors: list[Exception] = []
        if use is attrs.NOTHING:
            message = f"missing: expected the name of {with_article(hook)} implementation"
            errors.append(Fault(message, part="key", help=self._installed(hook)))
        elif not isinstance(use, str):
            errors.append(Fault(f"expected {a(str)}, found {found(use)}", help=self._installed(hook)))
        elif self.hooks is not None and hook not in self.hooks:
            return self._unasked(use, value, hook)
        else:
            try:
                declared = self.registry.resolve(hook, use)
                options = self.registry.options_class(declared)
            except UsageError as error:
                message, _, help = str(error).partition(". ")
                near = same_as(use, self.registry.names(hook))
                help = f'did you mean "{near}"? {self._installed(hook)}' if near else help[:1].lower() + help[1:]
                errors.append(Fault(message, help=help))
            except UnavailableError as error:
                errors.append(Fault(str(error), unavailable=error))
        if errors:
            raise ClassValidationError(
                f"{hook} can't be read", [_noted(error, "use", Choice) for error in errors], Choice
            )
        given = {key: content for key, content in value.items() if key != "use"}
        try:
            return Choice(use, self.read(given, options, kind=f'option of {hook} "{use}"'))
        except _Refused as refused:
            refused.partial = Choice(use, refused.partial)
            raise

    def _unasked(self, use: str, value: Mapping[str, Any], hook: str) -> Choice:
        """Return a choice whose plugin may be missing. Its options are then left as written."""
        given = {key: content for key, content in value.items() if key != "use"}
        if hook in PLACED_HOOKS:
            with suppress(StackwiseError, Fault, BaseValidationError):
                return Choice(use, self.read(given, self.registry.options_class(self.registry.resolve(hook, use))))
        return Choice(use, given)

    def _installed(self, hook: str) -> str:
        return f"installed: {', '.join(self.registry.names(hook)) or 'none'}"


def _boolean(value: Any, type_: Any) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, type_)
    return value


def _integer(value: Any, type_: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _mismatch(value, type_)
    if value not in _INT64:
        raise Fault(f"expected {a(type_)} of at most 64 bits, found {shown(value)}")
    return value


def _number(value: Any, type_: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, type_)
    if isinstance(value, int):
        return float(_integer(value, type_))
    if not isfinite(value):
        raise Fault(f"expected a finite number, found {shown(value)}")
    return value


def _string(value: Any, type_: Any) -> str:
    if not isinstance(value, str):
        raise _mismatch(value, type_)
    return value


def _path(value: Any, type_: Any) -> Path:
    return Path(_string(value, type_))


def _size(value: Any, type_: Any) -> ByteSize:
    try:
        if isinstance(value, str) or (isinstance(value, int) and value in _INT64):
            return ByteSize.parse(value)
        raise ValueError('expected a size such as "20 GB", "512 MiB" or a number of bytes')
    except (ValueError, OverflowError) as error:
        raise Fault(f"{error}, found {found(value)}") from None


_STRICT: dict[type, Callable[[Any, Any], Any]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _string,
    Path: _path,
    ByteSize: _size,
}


def _literal(type_: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        for allowed in get_args(type_):
            if allowed == value and type(allowed) is type(value):
                return allowed
        names = [allowed for allowed in get_args(type_) if isinstance(allowed, str)]
        near = (same_as(value, names) or nearest(value, names)) if isinstance(value, str) else None
        raise Fault(
            f"expected {either([shown(allowed) for allowed in get_args(type_)])}, "
            f"found {shown(value) if isinstance(value, str) else found(value)}",
            help=f"did you mean {shown(near)}?" if near else "",
        )

    return structure


def _union(type_: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    kinds = [kind for kind in get_args(type_) if kind is not NoneType]
    optional = len(kinds) < len(get_args(type_))

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        shape = _shape(type(value))
        meant = [kind for kind in kinds if shape and _shape(kind) is shape] if len(kinds) > 1 else kinds
        if len(meant) == 1:  # its own faults say more than that nothing fits
            return converter.structure(value, meant[0])
        for kind in kinds:
            try:
                return converter.structure(value, kind)
            except (Fault, BaseValidationError):
                continue
        raise _mismatch(value, type_)

    return structure


def _array(type_: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    make, kinds = get_origin(type_), get_args(type_)
    fixed = make is tuple and kinds[-1] is not Ellipsis

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _mismatch(value, type_)
        if fixed and len(value) != len(kinds):
            raise Fault(f"expected {a(type_)}, found {len(value)}")
        elements, errors = [], []
        for index, element in enumerate(value):
            kind = kinds[index] if fixed else kinds[0]
            try:
                elements.append(converter.structure(element, kind))
            except Exception as error:
                error.__notes__ = [IterableValidationNote("", index, kind)]
                errors.append(error)
        if errors:
            raise IterableValidationError(f"{noun(type_)} can't be read", errors, type_)
        return make(elements)

    return structure


def _mapping(type_: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    key_kind, kind = get_args(type_)
    read_key = _whole_number if key_kind is int else partial(converter.structure, cl=key_kind)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _mismatch(value, type_)
        return _contents(value, read_key, partial(converter.structure, cl=kind), kind, noun(type_))

    return structure


def _contents(
    table: Mapping[Any, Any], read_key: Callable[[Any], Any], read: Callable[[Any], Any], kind: Any, name: str
) -> dict[Any, Any]:
    """Read the content of a table that may have any keys."""
    contents: dict[Any, Any] = {}
    errors: list[Exception] = []
    for key, content in table.items():
        # Each by itself, as the key and what it holds can both be wrong.
        note = IterableValidationNote("", str(key), kind)
        try:
            known_as = read_key(key)
        except Exception as error:
            known_as = key
            error.__notes__ = [note]
            errors.append(error)
        try:
            contents[known_as] = read(content)
        except Exception as error:
            error.__notes__ = [note]
            errors.append(error)
    if errors:
        raise IterableValidationError(f"{name} can't be read", errors, dict)
    return contents


def _stack_number(key: Any) -> int:
    number = _whole_number(key)
    if number < 0:
        raise Fault(f"expected a whole number of 0 or more as key, such as 3, found {shown(key)}", part="key")
    return number


def _whole_number(key: Any) -> int:
    """Read a table's key, which TOML only has as text. One spelling each, so that no two keys mean the same."""
    if isinstance(key, bool) or not _WHOLE_NUMBER.fullmatch(str(key)):
        raise Fault(f"expected a whole number as key, such as 3, found {shown(key)}", part="key")
    return int(key)


def _shape(kind: Any) -> type | None:
    """Return ``list`` for what is written as an array, ``dict`` for what is written as a table."""
    kind = get_origin(kind) or kind
    if kind in (list, tuple):
        return list
    return dict if isinstance(kind, type) and (issubclass(kind, Mapping) or attrs.has(kind)) else None


def _mismatch(value: Any, type_: Any) -> Fault:
    quoted = isinstance(value, str) and type_ in (bool, int, float) and _BOOLEAN_OR_NUMBER.fullmatch(value)
    return Fault(f"expected {a(type_)}, found {found(value)}", help="leave out the quotes" if quoted else "")


def _array_of_tables(value: Any) -> str:
    tables = isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value)
    return "a table has single brackets: [name], not [[name]]" if tables else ""


def _noted(error: Exception, name: str, table: type) -> Exception:
    note = AttributeValidationNote("", name, table)
    error.__notes__ = [note]
    return error


def _check(instance: Any, attribute: "attrs.Attribute[Any]", known: set[str], *, is_default: bool) -> Fault | None:
    """Run a field's validator on an instance that lacks the fields which were refused."""
    if attribute.validator is None:
        return None
    value = getattr(instance, attribute.name)
    try:
        attribute.validator(instance, attribute, value)
    except AttributeError:
        raise
    except Exception as error:
        message = str(error.args[0]) if error.args else str(error)
        if not isinstance(error, ValueError | TypeError):
            message = f"its check failed with {type(error).__name__}: {message}"
        elif message.startswith("expected"):
            message += f", found {shown(value)}{' by default' if is_default else ''}"
        return Fault(message, siblings=sorted(known.intersection(re.findall(r"\w+", message)) - {attribute.name}))
    return None


def _across(keys: tuple[str, ...], message: str) -> Fault:
    """Return an error about several keys, located at the first one that was set."""
    first, *others = [tuple(key.split(".")) for key in keys]
    fault = Fault(message, others=others)
    fault.__notes__ = [AttributeValidationNote("", key, Config) for key in first]
    return fault
