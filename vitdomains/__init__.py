"""vitdomains: Vision Transformers for medical and satellite imaging."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vitdomains")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
