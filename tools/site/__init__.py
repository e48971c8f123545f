"""What `mkdocs.yml` needs to make a site of the documentation: `make docs`."""
