"""Which folders the wheel holds: the package, the review apps as ``vitdomains_apps.apps``, the configurations as its data.

All else stands in pyproject.toml. The apps keep their folder and their imports (``from apps...``): the entry scripts put the
folder above them on the path, and inside ``vitdomains_apps`` the name ``apps`` collides with nobody's.
"""

from pathlib import Path

from setuptools import find_packages, setup

apps = find_packages(include=["apps", "apps.*"])
configs = ["configs", *(f"configs.{folder.name}" for folder in Path("configs").iterdir() if folder.is_dir())]
setup(
    packages=[
        *find_packages(include=["vitdomains", "vitdomains.*"]),
        *(f"vitdomains_apps.{name}" for name in apps),
        *(f"vitdomains.{name}" for name in configs),
    ],
    package_dir={"vitdomains_apps.apps": "apps", "vitdomains.configs": "configs"},
    package_data={
        "": ["*.yaml", "*.html", "*.css", "*.js", "py.typed"],
        "vitdomains_apps.apps": [".streamlit/config.toml"],
    },
)
