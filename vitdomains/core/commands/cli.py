"""The command line of a domain: which commands there are, and how a call becomes one of them.

A command is a function of the domain and the arguments after its name; it returns the exit status. The table gives each by its
address, so that ``--help`` and a misspelt name import nothing that computes; a command imports that after it has parsed its
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from vitdomains.core import terminal
from vitdomains.core.domain import Deferred, Domain
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.core.terminal import console, nearest

Command = Callable[[Domain, list[str]], int]

SHARED: dict[str, Command] = {
    "train": Deferred("vitdomains.core.commands.train:train", "Train, calibrate, evaluate and write a bundle."),
    "evaluate": Deferred("vitdomains.core.commands.evaluate:evaluate", "Measure a bundle on labelled data."),
    "predict": Deferred("vitdomains.core.commands.predict:predict", "Write one row of probabilities a file."),
    "explain": Deferred("vitdomains.core.commands.explain:explain", "Draw heat maps of one image."),
    "export": Deferred(
        "vitdomains.core.commands.export:export", "Write ONNX, OpenVINO, INT8 and other files of a bundle."
    ),
    "reviews": Deferred(
        "vitdomains.core.commands.reviews:reviews", "Check, export and compare the decisions of reviewers."
    ),
    "probe": Deferred(
        "vitdomains.core.commands.probe:probe_command", "Measure a frozen backbone by linear and k-NN probes."
    ),
    "audit": Deferred("vitdomains.core.commands.audit:command", "Look for leakage between the splits."),
}


def main(domain: Domain, argv: Sequence[str], more: Mapping[str, Command] | None = None, *, prog: str = "") -> int:
    """Run one command of a domain and return its exit status.

    0; 2 for an error; 3 where some of the work failed (``--strict``, ``export``); 4 where all of it failed; 130 for Ctrl-C.

    Args:
        domain: What the commands need to know of the domain.
        argv: The command and its arguments.
        more: The domain's own commands, beside or in place of the shared ones.
        prog: How the user called it; default: ``python -m vitdomains.NAME``.
    """
    commands = {**SHARED, **(more or {})}
    prog = prog or f"python -m vitdomains.{domain.name}"
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name in ("-h", "--help"):
        _show_commands(domain, commands, prog)
        return 0
    try:
        if name not in commands:
            meant = "".join(f" Did you mean {close}?" for close in nearest(name, list(commands), 1))
            raise ConfigError(f"{name!r} is no command of {prog}.{meant}", hint=f"Use one of {', '.join(commands)}.")
        if "-h" not in rest and "--help" not in rest:
            restart_with_tuned_allocator()
        terminal.set_up_logging()
        return commands[name](domain, rest)
    except VitDomainsError as error:
        terminal.show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        terminal.messages.print(
            "stopped; the same command with --resume goes on from the last step saved" if name == "train" else "stopped"
        )
        return 130


def _show_commands(domain: Domain, commands: Mapping[str, Command], prog: str) -> None:
    table = Table(title=f"{prog} COMMAND", title_justify="left", show_header=False, box=None)
    for name, command in commands.items():
        table.add_row(f"  {name}", getattr(command, "about", "") or (command.__doc__ or "").splitlines()[0])
    console.print(f"{domain.title}. {domain.notice}".strip())
    console.print(table)
    console.print("Every command explains itself with --help.")
