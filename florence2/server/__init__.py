"""The embedded server: the real tritonserver of the nvidia-pytriton wheel, started and stopped from Python.

options.py       ServingOptions: what is served, where and how
machine.py       check what this machine must have; `make install` runs it first
gpu.py           check that the NVIDIA driver fits the installed packages
installation.py  find a tritonserver: the wheel's, or that of NVIDIA's container
folder.py        assemble the private folder of one run: backends, libraries, a mirror of the repository
streaming.py     derive the models that stream answers
addresses.py     choose ports, and report those that are taken
launch.py        build tritonserver's command line and environment, and check that shared memory suffices
supervisor.py    the small process between us and tritonserver that cleans up, whichever process is killed
log.py           read tritonserver's log: progress, real errors, reasons of failure
embedded.py      EmbeddedServer, which starts, watches and stops tritonserver and its models' processes
foreground.py    serve: run an EmbeddedServer until Ctrl-C, and restart it when one of its processes dies
"""
