"""``stackwise plugins``: the plugins that are installed, their states, and their options."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stackwise_core.cli.arguments import plugin_option
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.plugin_commands import find_plugins
from stackwise_core.cli.tables import print_aligned
from stackwise_core.config.reference import OptionRow, describe
from stackwise_core.hookspecs import INTERFACES, PROVISIONAL
from stackwise_core.registry import Declared, Plugin, Registry

_STATE_STYLES = {"ready": "green", "broken": "bold red", "blocked": "dim"}

_NARROW = 100
"""Terminals of fewer columns get what is in brackets under its name, and the version under its distribution."""


@click.group(invoke_without_command=True, short_help="List plugins, and show their options.")
@plugin_option
@json_option()
@click.pass_context
def plugins(context: click.Context, plugins: tuple[str, ...], as_json: bool) -> None:
    """List the plugins, and show their options."""
    if context.invoked_subcommand is None:
        registry = find_plugins(plugins)
        console = Console(highlight=False)
        if as_json:
            print_json(_listing(registry))
        elif console.is_terminal:
            _print_listing(console, registry)
        else:
            print_aligned(_lines(registry))


@plugins.command()
@click.argument("name")
@plugin_option
@json_option()
@click.pass_context
def show(context: click.Context, name: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """Show the options of NAME, or DISTRIBUTION:NAME, with types, defaults and help."""
    assert context.parent is not None
    before = context.parent.params
    registry = find_plugins(before["plugins"] + plugins)
    found = [(declared, describe(registry.options_class(declared))) for declared in registry.named(name)]
    if as_json or before["as_json"]:
        print_json([_facts(registry, declared) | {"options": _options(rows)} for declared, rows in found])
        return
    console = Console(highlight=False)
    for place, (declared, rows) in enumerate(found):
        if place:
            click.echo()
        if console.is_terminal:
            _print_implementation(console, registry, declared, rows)
        else:
            _print_implementation_plainly(registry, declared, rows)


def _unusable(registry: Registry) -> list[Plugin]:
    return [plugin for plugin in registry.plugins if plugin.problem]


# JSON


def _facts(registry: Registry, declared: Declared) -> dict[str, Any]:
    implementation = declared.implementation
    return {
        "hook": declared.hook,
        "name": declared.name,
        "aliases": list(implementation.aliases),
        "distribution": declared.distribution,
        "version": declared.version,
        "devices": list(implementation.devices),
        "state": registry.state(declared),
        "summary": implementation.summary,
        "api": implementation.api,
        "provisional": declared.hook in PROVISIONAL,
        "packages": list(implementation.packages),
    }


def _options(rows: Sequence[OptionRow]) -> list[dict[str, str]]:
    return [{"key": row.key, "type": row.type, "default": row.default, "help": row.help} for row in rows]


def _listing(registry: Registry) -> dict[str, Any]:
    return {
        "implementations": [
            _facts(registry, declared) for hook in INTERFACES for declared in registry.implementations(hook)
        ],
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "source": plugin.source,
                "state": plugin.state,
                "problem": plugin.problem
                and {"stage": plugin.problem.stage, "message": plugin.problem.message, "hint": plugin.problem.hint},
            }
            for plugin in registry.plugins
        ],
    }


# Plain text, one line an implementation, for pipes


def _lines(registry: Registry) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("HOOK", "NAME", "PACKAGE", "DEVICES", "STATE", "SUMMARY")]
    for hook in INTERFACES:
        for declared in registry.implementations(hook):
            devices = ",".join(declared.implementation.devices) or "-"
            state = registry.state(declared)
            lines.append((hook, declared.title, declared.package, devices, state, declared.implementation.summary))
    for plugin in _unusable(registry):
        lines.append(("-", plugin.name, plugin.package, "-", plugin.state, str(plugin.problem)))
    return lines


def _print_implementation_plainly(registry: Registry, declared: Declared, rows: Sequence[OptionRow]) -> None:
    click.echo(f"{declared.name}: {declared.implementation.summary}")
    print_aligned(_properties(registry, declared), indent="  ")
    if rows:
        print_aligned([("KEY", "TYPE", "DEFAULT", "HELP"), *map(_cells, rows)], indent="  ")


# Tables, for terminals


def _print_listing(console: Console, registry: Registry) -> None:
    if any(registry.implementations(hook) for hook in INTERFACES):
        console.print(_implementations_table(registry, console.width))
    else:
        console.print("No plugin is installed.")
    if _unusable(registry):
        console.print("\n[bold]Not loaded[/]")
        console.print(_unusable_table(registry))


def _implementations_table(registry: Registry, width: int) -> Table:
    # The hook stands above its implementations: a column of its own would leave no room for the summary.
    table = _table("", "Package", "Devices", "State", "Summary")
    for column in table.columns[:3]:
        column.no_wrap = True
    narrow = width < _NARROW
    for hook in INTERFACES:
        declared_here = registry.implementations(hook)
        if declared_here:
            heading = _title(hook).replace(" (", "\n(") if narrow else _title(hook)
            table.add_row(Text(heading, style="bold cyan"))
        for place, declared in enumerate(declared_here):
            title = f"  {declared.title}"
            table.add_row(
                Text(title.replace(" (", "\n  (") if narrow else title),
                Text(declared.package.replace(" ", "\n") if narrow else declared.package),
                Text(", ".join(declared.implementation.devices)),
                _styled(registry.state(declared)),
                Text(declared.implementation.summary),
                end_section=place == len(declared_here) - 1,
            )
    return table


def _unusable_table(registry: Registry) -> Table:
    table = _table("Plugin", "Package", "State", "Reason")
    for plugin in _unusable(registry):
        table.add_row(Text(plugin.name), Text(plugin.package), _styled(plugin.state), Text(str(plugin.problem)))
    return table


def _print_implementation(console: Console, registry: Registry, declared: Declared, rows: Sequence[OptionRow]) -> None:
    console.print(
        Text(declared.name, style="bold cyan") + Text(f"  {declared.implementation.summary}", style="default")
    )
    properties = Table.grid(padding=(0, 2))
    for key, value in _properties(registry, declared):
        properties.add_row(Text(f"  {key}", style="dim"), _styled(value) if key == "state" else Text(value))
    console.print(properties)
    if rows:
        options = _table("Option", "Type", "Default", "Help")
        for row in rows:
            options.add_row(*map(Text, _cells(row)))
        console.print()
        console.print(options)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _styled(state: str) -> Text:
    return Text(state, style=_STATE_STYLES.get(state, "yellow"))


# What both kinds of text say of one implementation


def _properties(registry: Registry, declared: Declared) -> list[tuple[str, str]]:
    implementation = declared.implementation
    properties = [
        ("hook", _title(declared.hook)),
        ("aliases", ", ".join(implementation.aliases)),
        ("package", declared.package),
        ("devices", ", ".join(implementation.devices) or "-"),
        ("state", registry.state(declared)),
        ("needs", ", ".join(implementation.packages)),
    ]
    return [(key, value) for key, value in properties if value]


def _title(hook: str) -> str:
    """Return a hook's name, with a mark where its contract may change."""
    return f"{hook} (provisional)" if hook in PROVISIONAL else hook


def _cells(row: OptionRow) -> tuple[str, str, str, str]:
    return row.key, row.type, row.default, row.help
