"""What a path may name, and what a file may point to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.core.geo.rasters import ramp, write
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.raster import close_all, describe_raster, open_raster, read_window


@pytest.mark.parametrize(
    "name",
    ["/vsicurl/http://127.0.0.1/a.tif", "/vsimem/a.tif", "/vsizip/a.zip/a.tif", "/vsistdin/", "s3://bucket/a.tif",
     "file:///etc/hostname", "zip://a.zip!a.tif", "ftp://host/a.tif"],
)  # fmt: skip
def test_virtual_file_systems_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="neither a file nor an http"):
        read_window(name)


@pytest.mark.parametrize(
    "prefix", ["GTIFF_DIR:1:", "NETCDF:", "GTIFF_RAW:", "DERIVED_SUBDATASET:AMPLITUDE:", "VRT:", "WMS:"]
)
def test_driver_prefixes_are_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    with pytest.raises(ImageError, match="No such file"):
        read_window(f"{prefix}{path}")
    # A file that is really called so is read as a file.
    monkeypatch.chdir(tmp_path)
    os.link("a.tif", f"{prefix}a.tif")
    assert (read_window(f"{prefix}a.tif").pixels == ramp(1, 20, 20)).all()


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG", "HFA", "WEBP"])
def test_other_formats_are_read_whatever_they_are_called(tmp_path: Path, driver: str) -> None:
    pixels = np.full((3, 64, 64), 90, np.uint8)
    source = write(tmp_path / "a.tif", pixels)
    path = tmp_path / "picture.dat"
    with rasterio.open(source) as dataset:
        rasterio.shutil.copy(dataset, path, driver=driver)
    with open_raster(path) as opened:
        assert opened.driver == driver
    assert abs(read_window(path).pixels - 90).max() <= 3


def vrt(path: Path, source: str, relative: int = 1, extra: str = "", dataset: str = "", band: str = "") -> Path:
    path.write_text(
        f'<VRTDataset rasterXSize="20" rasterYSize="20" {dataset}>{extra}<VRTRasterBand dataType="UInt16" band="1" {band}>'
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_vrt_of_its_own_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    part = write(tmp_path / "parts" / "a.tif", ramp(1, 20, 20))
    assert (read_window(vrt(tmp_path / "relative.vrt", "parts/a.tif")).pixels == ramp(1, 20, 20)).all()
    assert (read_window(vrt(tmp_path / "absolute.tif", str(part), 0)).pixels == ramp(1, 20, 20)).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_vrt_that_points_elsewhere_is_refused_unless_its_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    secret = write(tmp_path / "there" / "a.tif", ramp(1, 20, 20))
    os.symlink(secret, tmp_path / "here" / "link.tif")
    sources = [("../there/a.tif", 1), (str(secret), 0), ("link.tif", 1), ("/vsicurl/http://127.0.0.1/a.tif", 0),
               ("http://127.0.0.1/a.tif", 0), ("NETCDF:/etc/passwd:x", 0)]  # fmt: skip
    for source, relative in sources:
        with pytest.raises(ImageError, match="points outside its folder"):
            read_window(vrt(tmp_path / "here" / "a.vrt", source, relative))
    monkeypatch.setenv("VITDOMAINS_VRT_FOLDERS", str(tmp_path / "there"))
    assert (read_window(vrt(tmp_path / "here" / "a.vrt", str(secret), 0)).pixels == ramp(1, 20, 20)).all()


def test_vrt_may_not_hide_another_one_or_anything_but_a_mosaic(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", ramp(1, 20, 20))
    vrt(tmp_path / "inner.tif", "/etc/a.tif", 0)
    with pytest.raises(ImageError, match="source is no raster file"):
        read_window(vrt(tmp_path / "outer.vrt", "inner.tif"))
    with pytest.raises(ImageError, match="source cannot be opened"):
        read_window(vrt(tmp_path / "outer.vrt", "missing.tif"))
    for words in (
        {"dataset": 'subClass="VRTWarpedDataset"'},
        {"band": 'subClass="VRTRawRasterBand"'},
        {"extra": "<GDALWarpOptions><SourceDataset>/etc/a.tif</SourceDataset></GDALWarpOptions>"},
    ):
        with pytest.raises(ImageError, match="no plain VRT"):
            read_window(vrt(tmp_path / "outer.vrt", "a.tif", **words))
    (tmp_path / "broken.vrt").write_text('<VRTDataset rasterXSize="20">')
    with pytest.raises(ImageError, match="no well-formed VRT"):
        read_window(tmp_path / "broken.vrt")
    service = tmp_path / "wms.tif"
    service.write_text("<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1/</ServerUrl></Service></GDAL_WMS>")
    with pytest.raises(ImageError, match="no raster format"):
        read_window(service)


RAW = (
    '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">/etc/hostname'
    "</SourceFilename><ImageOffset>0</ImageOffset></VRTRasterBand>"
)


@pytest.mark.parametrize(
    "text",
    [
        f'<VRTDataset rasterXSize="8" rasterYSize="1">{RAW}</VRTDataset>',
        f'<vrtdataset rasterxsize="8" rasterysize="1">{RAW.lower().replace("vrtrawrasterband", "VRTRawRasterBand")}</vrtdataset>',
        f'<VRTDataset xmlns="urn:x" rasterXSize="8" rasterYSize="1">{RAW}</VRTDataset>',
        f'<g:VRTDataset xmlns:g="urn:x" rasterXSize="8" rasterYSize="1">{RAW.replace("<", "<g:").replace("<g:/", "</g:")}'
        "</g:VRTDataset>",
        RAW.join(['<VRTDataset rasterXSize="8" rasterYSize="1">', "</VRTDataset>"]).replace("subClass", "SUBCLASS"),
        RAW.join(['<VRTDataset xmlns:p="u" rasterXSize="8" rasterYSize="1">', "</VRTDataset>"]).replace("subClass", "p:subClass"),
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><VRTDataset rasterXSize="8" rasterYSize="1">&x;</VRTDataset>',
        '<VRTDataset rasterXSize="20" rasterYSize="20"><SRS>/vsicurl/http://127.0.0.1/a.prj</SRS></VRTDataset>',
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="UInt16" band="1"><Overview><SourceFilename '
        'relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand></Overview></VRTRasterBand></VRTDataset>',
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename '
        'relativeToVRT="1">a.tif</SourceFilename><OpenOptions><OOI key="A">b</OOI></OpenOptions><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>",
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="UInt16" band="1" subClass="VRTDerivedRasterBand">'
        "<PixelFunctionType>a.b</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage></VRTRasterBand></VRTDataset>",
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource><sourcefilename '
        'relativetovrt="0">/etc/hostname</sourcefilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>',
    ],
)  # fmt: skip
def test_no_spelling_of_a_vrt_walks_around_the_list(tmp_path: Path, text: str) -> None:
    write(tmp_path / "a.tif", ramp(1, 20, 20))
    (tmp_path / "b.vrt").write_text(text)
    with pytest.raises(ImageError, match="no plain VRT|outside its folder|no well-formed|no raster format"):
        read_window(tmp_path / "b.vrt")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_gdal_writes_as_a_vrt_is_read_alike(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tif", ramp(3, 40, 30), nodata=5, names=("blue", "green", "red"))
    with rasterio.open(source) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "copy.vrt", driver="VRT")
        profile = {"crs": dataset.crs, "transform": dataset.transform, "width": 30, "height": 40}
    plain, virtual = read_window(source), read_window(tmp_path / "copy.vrt")
    assert (plain.pixels == virtual.pixels).all() and (plain.valid == virtual.valid).all()
    info = describe_raster(tmp_path / "copy.vrt")
    assert (info.crs, info.bands, info.nodata) == (profile["crs"], ("blue", "green", "red"), 5)
    assert info.transform == profile["transform"] and info.path == str(tmp_path / "copy.vrt")


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".OVR", ".ovr.msk", ".aux"])
def test_a_file_beside_a_raster_is_opened_as_no_other_format(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 64, 64))
    assert describe_raster(path).count == 1
    close_all()
    Path(f"{path}{ending}").write_text(f'<VRTDataset rasterXSize="32" rasterYSize="32">{RAW}</VRTDataset>')
    with pytest.raises(ImageError, match="beside it, which is no GeoTIFF"):
        describe_raster(path)
    vrt(tmp_path / "b.vrt", "a.tif")
    with pytest.raises(ImageError, match="beside it, which is no GeoTIFF"):
        describe_raster(tmp_path / "b.vrt")


@pytest.mark.parametrize(
    "inner",
    ['<Metadata domain="SUBDATASETS"><MDI key="SUBDATASET_1_NAME">/etc/hostname</MDI></Metadata>',
     "<VRTDataset/>", "<p:Xform xmlns:p='u'/>", "<metadata DOMAIN='overviews'><mdi key='OVERVIEW_FILE'>/etc/a</mdi></metadata>"],
)  # fmt: skip
def test_an_aux_file_describes_and_names_nothing_else(tmp_path: Path, inner: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    aux = path.with_name("a.tif.aux.xml")
    aux.write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>3</NoDataValue></PAMRasterBand></PAMDataset>")
    assert describe_raster(path).nodata == 3
    close_all()
    aux.write_text(f"<PAMDataset>{inner}</PAMDataset>")
    with pytest.raises(ImageError, match="points to another file, or may"):
        describe_raster(path)


@pytest.mark.parametrize(
    ("domain", "key"), [("OVERVIEWS", "OVERVIEW_FILE"), ("GEOLOCATION", "X_DATASET")]
)  # fmt: skip
def test_geotiff_that_names_another_file_is_refused(tmp_path: Path, domain: str, key: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 64, 64))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns=domain, **{key: "/vsicurl/http://127.0.0.1/b.tif"})
    with pytest.raises(ImageError, match=f"points to another file.*{key}"):
        describe_raster(path)
    beside = write(tmp_path / "b.tif", ramp(1, 64, 64))
    beside.with_name("b.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="{domain}"><MDI key="{key}">/vsicurl/http://127.0.0.1/c.tif</MDI></Metadata></PAMDataset>'
    )
    with pytest.raises(ImageError, match=f"points to another file.*{key}"):
        describe_raster(beside)


def test_external_overviews_and_masks_beside_the_file_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 256, 256))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    if not (tmp_path / "a.tif.ovr").exists():
        pytest.skip("this GDAL writes the overviews into the file")
    assert describe_raster(path).overviews == (2, 4)
