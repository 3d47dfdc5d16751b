"""The MONAI Label protocol: 3D Slicer, OHIF and MONAI's own client talk to the workbench as they do to MONAI Label."""

from wardround.client.workbench.monai_label.router import make_router

__all__ = ["make_router"]
