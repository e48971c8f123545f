"""The embedded server: the real tritonserver of the nvidia-pytriton wheel, started and stopped by Python alone.

wheel.py       finds tritonserver, the Python backend's stub for this interpreter and libpython
installation.py a tritonserver ready to be started: the wheel's when assembled, or that of NVIDIA's container
folder.py      assembles the private folder that a server runs in: backends, libraries, a mirror of the repository
addresses.py   ports: free ones, and clear words about taken ones
log.py         reads tritonserver's log: progress, real errors, reasons of failure
supervisor.py  the small process between us and tritonserver that leaves nothing behind, whoever is killed
launch.py      what tritonserver is started with: command line, environment, shared memory
embedded.py    EmbeddedServer, which puts the others together
stubs.py       which processes the models have, and whether they live
foreground.py  serve, an EmbeddedServer until Ctrl-C; starts another one when something of it has died
"""

from florence2.server.embedded import EmbeddedServer
from florence2.server.foreground import serve

__all__ = ["EmbeddedServer", "serve"]
