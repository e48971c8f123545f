"""The embedded server: the real tritonserver of the nvidia-pytriton wheel, started and stopped from Python.

options.py       ServingOptions: what is served, where and how
machine.py       what this machine must have; `make install` runs it first
installation.py  find a tritonserver: the wheel's, or that of NVIDIA's container
folder.py        assemble the private folder of one run: backends, libraries, a mirror of the repository
addresses.py     choose ports, and name those that are taken
launch.py        command line, environment and shared memory of tritonserver
supervisor.py    the small process between us and tritonserver that cleans up, whatever is killed
log.py           read tritonserver's log: progress, real errors, reasons of failure
streaming.py     derive the models that stream answers
stubs.py         the processes of Python models: how many there will be, which there are, and whether they live
embedded.py      EmbeddedServer, which puts these together
foreground.py    serve: an EmbeddedServer until Ctrl-C, started again when a process of it dies
"""
