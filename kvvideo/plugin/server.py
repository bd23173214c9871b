"""vLLM's own ``serve`` command, run in this process."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from vllm import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import utils

from kvvideo.errors import INTERRUPTED, ConfigError


class ServeCommand:
    """The command and its parser. Making it sets what vLLM's command line sets in the environment."""

    def __init__(self) -> None:
        cli_env_setup()
        self._command = ServeSubcommand()
        self._parser = FlexibleArgumentParser(prog="vllm")
        self._options = self._command.subparser_init(self._parser.add_subparsers(dest="subparser"))

    def set_defaults(self, defaults: dict[str, Any]) -> None:
        """Put ``defaults`` in place of vLLM's, by the names of its options."""
        self._options.set_defaults(**defaults)

    def refuse_with(self, advice: str) -> None:
        """Let ``parse`` raise a ConfigError, which ends with ``advice``, where vLLM's parser ends the process."""

        def refuse(message: str) -> NoReturn:
            raise ConfigError(f"{message}; {advice}")

        self._parser.error = self._options.error = refuse

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Return the arguments of ``vllm serve``, read as it reads them.

        Raises:
            ConfigError: after ``refuse_with``, if they cannot be read.
            SystemExit: without it.
        """
        parsed: argparse.Namespace = self._parser.parse_args(["serve", *arguments])
        return parsed

    def run(self, args: argparse.Namespace) -> None:
        """Serve until told to end.

        Raises:
            Exception: whatever vLLM raises if it cannot serve.
        """
        configure_logging_from_args(args)
        self._command.validate(args)
        _heed_interrupts()
        self._command.cmd(args)


def configured(args: argparse.Namespace) -> Any:
    """Return the ``VllmConfig`` that ``vllm serve`` makes of its arguments.

    Raises:
        Exception: whatever vLLM raises if they cannot be combined.
    """
    return AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)


def _heed_interrupts() -> None:
    """Let a server that is told to end (SIGTERM) do so while its engine loads.

    vLLM's own handler raises KeyboardInterrupt, and what opens the socket on which the engine reports takes that for
    the end of its reports. Server and engine would then wait for each other, for ten minutes.
    """
    open_socket = utils.zmq_socket_ctx

    @contextmanager
    def heeding(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with open_socket(*args, **kwargs) as opened:
            try:
                yield opened
            except KeyboardInterrupt:
                raise SystemExit(INTERRUPTED) from None

    utils.zmq_socket_ctx = heeding
