"""The vocabularies of PadChest and VinDr-CXR beside ours: which of their labels assert a finding, which leave it open.

PadChest labels form a tree (Bustos et al. 2020): a child asserts its parent, so each set here holds the label and those
below it. VinDr-CXR names 22 local and 6 global labels (Nguyen et al. 2022), one of which joins nodule and mass.
"""

from __future__ import annotations

_CONSOLIDATION = frozenset({"consolidation", "air bronchogram"})
_INFILTRATES = _CONSOLIDATION | {
    "infiltrates", "interstitial pattern", "ground glass pattern", "reticular interstitial pattern",
    "reticulonodular interstitial pattern", "miliary opacities", "alveolar pattern",
}  # fmt: skip
_ATELECTASIS = frozenset(
    {
        "atelectasis", "laminar atelectasis", "lobar atelectasis", "segmental atelectasis", "round atelectasis",
        "total atelectasis", "atelectasis basal",
    }
)  # fmt: skip
_PNEUMONIA = frozenset({"pneumonia", "atypical pneumonia"})
_NODULE = frozenset({"nodule", "multiple nodules"})
_MASS = frozenset({"pulmonary mass", "mass"})
_THICKENING = frozenset({"pleural thickening", "apical pleural thickening", "calcified pleural thickening"})
_GRANULOMA = frozenset({"granuloma", "calcified granuloma"})

PADCHEST_POSITIVE: dict[str, frozenset[str]] = {
    "Atelectasis": _ATELECTASIS,
    "Cardiomegaly": frozenset({"cardiomegaly"}),
    "Effusion": frozenset(
        {
            "pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax",
            "empyema",
        }
    ),
    "Infiltration": _INFILTRATES,
    "Mass": _MASS,
    "Nodule": _NODULE,
    "Pneumonia": _PNEUMONIA,
    "Pneumothorax": frozenset({"pneumothorax", "hydropneumothorax"}),
    "Consolidation": _CONSOLIDATION,
    "Edema": frozenset({"pulmonary edema"}),
    "Emphysema": frozenset({"emphysema"}),
    "Fibrosis": frozenset({"pulmonary fibrosis"}),
    "Pleural_Thickening": _THICKENING,
    "Hernia": frozenset({"hiatal hernia"}),
    "Enlarged_Cardiomediastinum": frozenset({"mediastinal enlargement", "superior mediastinal enlargement"}),
    "Lung_Opacity": _INFILTRATES,
    "Lung_Lesion": _NODULE | _MASS | {"lung metastasis"},
    "Pleural_Other": _THICKENING | {"pleural plaques", "calcified pleural plaques", "pleural mass"},
    "Fracture": frozenset(
        {
            "fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture",
            "vertebral fracture",
        }
    ),
    "Support_Devices": frozenset(
        {
            "electrical device", "pacemaker", "dual chamber device", "single chamber device", "dai", "catheter",
            "central venous catheter", "central venous catheter via jugular vein",
            "central venous catheter via subclavian vein", "central venous catheter via umbilical vein",
            "reservoir central venous catheter", "NSG tube", "endotracheal tube", "tracheostomy tube",
            "chest drain tube", "ventriculoperitoneal drain tube", "gastrostomy tube", "nephrostomy tube",
            "double J stent", "artificial heart valve", "artificial mitral heart valve",
            "artificial aortic heart valve", "aortic endoprosthesis", "endoprosthesis",
        }
    ),
}  # fmt: skip
"""Finding -> PadChest labels that assert it."""

PADCHEST_UNSURE: dict[str, frozenset[str]] = {
    "Atelectasis": frozenset({"volume loss", "hypoexpansion", "hypoexpansion basal"}),
    "Effusion": frozenset({"costophrenic angle blunting"}),
    "Infiltration": _PNEUMONIA | {"increased density", "kerley lines", "pulmonary edema"},
    "Mass": frozenset({"lung metastasis", "lepidic adenocarcinoma", "abscess", "multiple nodules"}),
    "Nodule": _GRANULOMA | {"pseudonodule", "lung metastasis", "miliary opacities"},
    "Consolidation": _PNEUMONIA | {"alveolar pattern", "infiltrates", "increased density"},
    "Edema": frozenset(
        {"kerley lines", "heart insufficiency", "vascular redistribution", "central vascular redistribution"}
    ),
    "Emphysema": frozenset({"COPD signs", "air trapping", "hyperinflated lung", "flattened diaphragm", "bullas"}),
    "Fibrosis": frozenset(
        {
            "fibrotic band", "chronic changes", "post radiotherapy changes", "asbestosis signs",
            "tuberculosis sequelae", "reticular interstitial pattern",
        }
    ),
    "Pleural_Thickening": frozenset(
        {"pleural plaques", "calcified pleural plaques", "fissure thickening", "minor fissure thickening",
         "major fissure thickening"}
    ),
    "Enlarged_Cardiomediastinum": frozenset({"cardiomegaly", "mediastinal mass", "mediastinic lipomatosis", "goiter"}),
    "Lung_Opacity": _ATELECTASIS | _PNEUMONIA | _NODULE | _MASS
    | {"increased density", "pulmonary edema", "lung metastasis"},
    "Lung_Lesion": _GRANULOMA
    | {"pseudonodule", "cavitation", "abscess", "cyst", "lepidic adenocarcinoma", "miliary opacities"},
    "Pleural_Other": frozenset({"fissure thickening", "minor fissure thickening", "major fissure thickening"}),
    "Fracture": frozenset({"vertebral compression", "vertebral anterior compression", "thoracic cage deformation"}),
    "Support_Devices": frozenset(
        {
            "metal", "suture material", "osteosynthesis material", "prosthesis", "humeral prosthesis",
            "external foreign body", "abnormal foreign body",
        }
    ),
}  # fmt: skip
"""Finding -> PadChest labels that leave it open: a wider term, a sign of it, or a neighbour hard to tell apart."""

PADCHEST_SILENT = frozenset({"", "unchanged", "exclude", "suboptimal study"})
"""PadChest labels that say nothing about findings: an image with no other is unknown in every class."""

VINDR_POSITIVE: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Effusion": ("pleural effusion",),
    "Infiltration": ("infiltration",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax",),
    "Consolidation": ("consolidation",),
    "Edema": ("edema",),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("pulmonary fibrosis",),
    "Pleural_Thickening": ("pleural thickening",),
    "Lung_Opacity": ("lung opacity",),
    "Lung_Lesion": ("nodule/mass", "lung tumor"),
    "Fracture": ("rib fracture", "clavicle fracture"),
    "No_Finding": ("no finding",),
}
"""Finding -> columns of VinDr-CXR's image labels, in lower case, any of which asserts it."""

VINDR_JOINT: dict[str, str] = {"Nodule": "nodule/mass", "Mass": "nodule/mass"}
"""Finding -> a column that holds more than it: its 0 makes the finding negative, its 1 leaves it unknown."""
