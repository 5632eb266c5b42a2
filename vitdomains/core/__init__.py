"""The Vision Transformer core that every domain shares."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vitdomains")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
