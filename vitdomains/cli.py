"""The command ``vitdomains``: the three domains, the measuring of models, the review apps, and what is installed here."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from vitdomains import __version__
from vitdomains.core import terminal
from vitdomains.core.commands import cli as domain_cli
from vitdomains.core.config.yaml_file import shipped_files
from vitdomains.core.domain import Deferred, Domain
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.terminal import console, nearest

DOMAINS = {
    "cxr": "Chest films: train, evaluate, predict, explain, report.",
    "satellite": "Tiles and scenes: the same, and maps.",
    "zeroshot": "Labels by class names, without training.",
}
APPS = {"films": "cxr_review.py", "tiles": "satellite_review.py", "labels": "zeroshot_review.py"}
SHELLS = ("bash", "zsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vitdomains COMMAND ...`` and return its exit status: 0, 2 for an error, 130 for Ctrl-C."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        _show_commands()
        return 0
    if name in ("-V", "--version"):
        console.print(f"vitdomains {__version__}", highlight=False)
        return 0
    try:
        if name in DOMAINS:
            domain, commands = domain_commands(name)
            return domain_cli.main(domain, rest, commands, prog=f"vitdomains {name}")
        if name not in OTHERS:
            known = [*DOMAINS, *OTHERS]
            meant = "".join(f" Did you mean {close}?" for close in nearest(name, known, 1))
            raise ConfigError(f"{name!r} is no command of vitdomains.{meant}", hint=f"Use one of {', '.join(known)}.")
        return OTHERS[name](rest)
    except VitDomainsError as error:
        terminal.show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        terminal.messages.print("stopped")
        return 130


def domain_commands(name: str) -> tuple[Domain, Mapping[str, domain_cli.Command]]:
    """A domain, and the commands that it has beside the shared ones."""
    domain: Domain = importlib.import_module(f"vitdomains.{name}").DOMAIN
    commands: Mapping[str, domain_cli.Command] = importlib.import_module(f"vitdomains.{name}.__main__").COMMANDS
    return domain, commands


def review(argv: Sequence[str]) -> int:
    """Start a review app in the browser: films, tiles or labels."""
    usage = "films|tiles|labels [--port 8501] [options of the app, e.g. --bundle B --studies FILMS --store URL]"
    parser = argparse.ArgumentParser(prog="vitdomains review", description=review.__doc__, allow_abbrev=False)
    parser.add_argument("app", choices=APPS, help="which of the three")
    parser.add_argument("--port", type=int, default=8501, help="at localhost (default: %(default)s)")
    parser.epilog = "Other options go to the app; streamlit run apps/... -- OPTIONS takes the same."
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    terminal.parse_args(parser, argv[:1], usage)  # the app is named first
    args, rest = parser.parse_known_args([*argv])
    return subprocess.run(_streamlit(args.app, args.port, rest), check=False).returncode


def _streamlit(app: str, port: int, options: Sequence[str]) -> list[str]:
    """The call that serves an app at localhost alone.

    Raises:
        ConfigError: Streamlit is not installed, or the apps are not where the package is.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError("The review apps need Streamlit.", hint="pip install 'vitdomains[apps]'")
    beside = Path(__file__).resolve().parents[1]  # of a checkout, or of the installed packages
    scripts = [folder / "apps" / APPS[app] for folder in (beside, beside / "vitdomains_apps")]
    script = next((script for script in scripts if script.is_file()), None)
    if script is None:
        raise ConfigError(f"{APPS[app]} is not beside the package.", hint="Install vitdomains anew.")
    server = ["--server.address", "localhost", "--server.port", str(port), "--browser.gatherUsageStats", "false"]
    return [sys.executable, "-m", "streamlit", "run", str(script), *server, "--", *options]


def completion(argv: Sequence[str]) -> int:
    """Print the completion of a shell: eval "$(vitdomains completion bash)"."""
    parser = argparse.ArgumentParser(prog="vitdomains completion", description=completion.__doc__)
    parser.add_argument("shell", choices=SHELLS)
    args = terminal.parse_args(parser, argv, "|".join(SHELLS))
    import shtab

    sys.stdout.write(shtab.complete(_tree(), args.shell))
    return 0


def _tree() -> argparse.ArgumentParser:
    """All commands and their options as one parser; the options are read from the help of each command."""
    top = argparse.ArgumentParser(prog="vitdomains")
    top.add_argument("--version", action="store_true", help="print the version")
    words = top.add_subparsers()
    for name, about in DOMAINS.items():
        domain, own = domain_commands(name)
        commands = words.add_parser(name, help=about).add_subparsers()
        for command, function in {**domain_cli.SHARED, **own}.items():
            made = commands.add_parser(command, help=getattr(function, "about", ""))
            for option in _options(function, domain):
                made.add_argument(option, help="see --help")
    for name, other in OTHERS.items():
        made = words.add_parser(name, help=_about(other))
        if name in ("review", "completion"):
            made.add_argument("what", choices=[*APPS] if name == "review" else [*SHELLS])
    return top


def _options(command: domain_cli.Command, domain: Domain) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command(domain, ["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())) - {"--help"})


def configs(argv: Sequence[str]) -> int:
    """List the configurations and class lists that come with the package; --config and --classes take their names."""
    terminal.parse_args(argparse.ArgumentParser(prog="vitdomains configs", description=configs.__doc__), argv, "")
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, file in shipped_files().items():
        about = file.read_text(encoding="utf-8").lstrip("# ").partition("\n")[0]
        table.add_row(file.parent.name, name, about)
    console.print(table, highlight=False, markup=False)
    return 0


def _bench(argv: Sequence[str]) -> int:
    """Measure speed, size and memory of models."""
    from vitdomains.bench.__main__ import main as bench
    from vitdomains.core.process import restart_with_tuned_allocator

    if not {"-h", "--help"} & set(argv):
        restart_with_tuned_allocator()
    return bench(argv)


OTHERS: dict[str, Callable[[Sequence[str]], int]] = {
    "bench": _bench,
    "review": review,
    "doctor": Deferred("vitdomains.doctor:doctor", "Show versions, devices, runtimes, codecs, and what is missing."),
    "configs": configs,
    "completion": completion,
}


def _show_commands() -> None:
    table = Table(title="vitdomains COMMAND", title_justify="left", show_header=False, box=None)
    for name, about in DOMAINS.items():
        table.add_row(f"  {name}", about)
    for name, function in OTHERS.items():
        table.add_row(f"  {name}", _about(function))
    console.print("Vision Transformers for medical and satellite imaging. Research use only: not a medical device.")
    console.print(table)
    console.print("Every command explains itself with --help; vitdomains --version prints the version.")


def _about(function: Callable[..., int]) -> str:
    return str(getattr(function, "about", "") or (function.__doc__ or "").splitlines()[0])
