"""The main job on the toy images as a program, for Fabric starts it anew for each device: ROOT RUN_DIR DEVICES STOP_AT.

Stops as Ctrl-C does after step STOP_AT, where it is above 0, and goes on from the last saved state where there is one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tests.core import toy
from vitdomains.core import pipeline
from vitdomains.core.config.schema import Config

GLOBAL_BATCH = 16


def config(root: Path, run_dir: Path, devices: int) -> Config:
    """The same images in every step, on however many devices; no dropout, whose masks are drawn by device."""
    made = toy.config(root, run_dir, epochs=3, batch_size=GLOBAL_BATCH // devices, augment="cxr", ema_decay=0.9)
    return replace(made, run=replace(made.run, devices=devices, save_seconds=0.0, resume=True, log_every=1))


def main(root: str, run_dir: str, devices: str, stop_at: str) -> None:
    def stop(phase: str, done: int, total: int, text: str) -> None:
        if phase == "train" and done == int(stop_at):
            raise KeyboardInterrupt

    pipeline.train(toy.DOMAIN, config(Path(root), Path(run_dir), int(devices)), stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
