"""Store objects and captions of a folder's images in FiftyOne: python fiftyone_model.py FOLDER [URL]."""

import sys

import fiftyone as fo

from florence2_client.integrations.fiftyone import Florence2Model

url = sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"
dataset = fo.Dataset.from_images_dir(sys.argv[1])

dataset.apply_model(Florence2Model(url, "caption"), label_field="caption", batch_size=16)
shapes = Florence2Model(url, classes={"a star": "star", "a triangle": "triangle"})
shapes.apply_to(dataset, "shapes", confidence_thresh=0.5)

print(dataset.count_values("shapes.detections.label"), *dataset.values("caption.label"), sep="\n")
# fo.launch_app(dataset).wait() shows them in a browser
