"""The legend of a map: the value, name and colour of each class, and the side files by which other programs show them."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.tasks import Kind


@dataclass(frozen=True)
class Labels:
    """What the probabilities of a cell become."""

    classes: tuple[str, ...]
    kind: Kind = "singlelabel"
    thresholds: tuple[float, ...] = ()
    min_probability: float = 0.0

    @property
    def names(self) -> dict[int, str]:
        """Name of each value of a single-label map, 0 left out."""
        names = dict(enumerate(self.classes, start=1))
        return names | ({len(self.classes) + 1: UNKNOWN} if self.min_probability > 0 else {})

    @property
    def nodata(self) -> int:
        """Value of a cell without data."""
        return 0 if self.kind == "singlelabel" else 255

    @property
    def dtype(self) -> str:
        """Smallest type that holds the values."""
        return "uint8" if self.kind == "multilabel" or len(self.classes) < 255 else "uint16"


def class_colours(labels: Labels) -> dict[int, tuple[int, int, int]]:
    """Red, green and blue 0..255 of each value: hues by the golden angle, so that neighbours differ; ``unknown`` is grey."""
    colours = {}
    for value, name in labels.names.items():
        lightness, saturation = ((0.45, 0.65), (0.62, 0.55), (0.32, 0.60))[value % 3]
        colour = colorsys.hls_to_rgb(value * 0.618034 % 1.0, lightness, saturation)
        red, green, blue = (round(255 * part) for part in colour)
        colours[value] = (128, 128, 128) if name == UNKNOWN and value > len(labels.classes) else (red, green, blue)
    return colours


def qml(labels: Labels) -> str:
    """A QGIS layer style of the classes (QGIS loads it by itself, since it has the name of the raster)."""
    entries = "".join(
        f'<paletteEntry value="{value}" color="#{r:02x}{g:02x}{b:02x}" alpha="255" label={quoteattr(labels.names[value])}/>'
        for value, (r, g, b) in class_colours(labels).items()
    )
    return (
        '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM">\n<qgis version="3.34" styleCategories="Symbology"><pipe>'
        '<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">'
        f"<colorPalette>{entries}</colorPalette></rasterrenderer></pipe><blendMode>0</blendMode></qgis>\n"
    )


def aux_xml(labels: Labels) -> str:
    """GDAL's side file: categories (value by position) and an attribute table of value, name and colour."""
    names = ["no data", *labels.names.values()]
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    fields = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    heads = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(fields)
    )
    rows = "".join(
        f'<Row index="{i}">'
        + "".join(f"<F>{escape(str(cell))}</F>" for cell in (value, labels.names[value], *colour))
        + "</Row>"
        for i, (value, colour) in enumerate(class_colours(labels).items())
    )
    table = f'<GDALRasterAttributeTable tableType="thematic">{heads}{rows}</GDALRasterAttributeTable>'
    band = f'<PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames>{table}</PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"
