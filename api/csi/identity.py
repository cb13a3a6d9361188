"""The service Identity: what the plugin is, and whether it is ready."""

import importlib.metadata
from collections.abc import Mapping
from typing import Final

from api.cli.client import ApiUnreachable
from api.csi import csi_pb2 as csi
from api.csi.api import Api
from api.csi.service import Call

#: What storage classes and volumes of an orchestrator name the plugin. It must have the form of a domain name.
PLUGIN_NAME: Final = "csi.cistern.internal"

_Service = csi.PluginCapability.Service
_Expansion = csi.PluginCapability.VolumeExpansion


def get_plugin_info(_: Api, __: csi.GetPluginInfoRequest) -> csi.GetPluginInfoResponse:
    """Return the name and the version."""
    return csi.GetPluginInfoResponse(name=PLUGIN_NAME, vendor_version=importlib.metadata.version("cistern"))


def get_plugin_capabilities(_: Api, __: csi.GetPluginCapabilitiesRequest) -> csi.GetPluginCapabilitiesResponse:
    """Return that there is a controller, and that volumes may grow while they are used."""
    return csi.GetPluginCapabilitiesResponse(
        capabilities=[
            csi.PluginCapability(service=_Service(type=_Service.CONTROLLER_SERVICE)),
            csi.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)),
        ]
    )


def probe(api: Api, _: csi.ProbeRequest) -> csi.ProbeResponse:
    """Return whether the API answers. A key that it does not accept is an error: only a person can help."""
    try:
        api.get("/volumes", limit=1)
    except ApiUnreachable:
        return csi.ProbeResponse(ready={"value": False})
    return csi.ProbeResponse(ready={"value": True})


CALLS: Final[Mapping[str, Call]] = {
    "GetPluginInfo": get_plugin_info,
    "GetPluginCapabilities": get_plugin_capabilities,
    "Probe": probe,
}
