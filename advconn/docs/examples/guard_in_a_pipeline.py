"""A guard in an inference pipeline: fit a detector once, then judge every batch where it is classified.

python guard_in_a_pipeline.py
"""

import torch

from advconn import Guard, fit
from advconn.attacks import Attack
from advconn.bundle import default, load
from advconn.data.datasets import digits

classifier = load(default("digits")).classifier  # yours: Classifier(module.eval(), size=..., mean=..., std=...)
images, labels = digits()
detector = fit(classifier, images[1000:1400], labels[1000:1400])  # clean images that it was not trained on

guard = Guard(detector)
clean = images[1400:1500].float() / 255
attacked = Attack.parse("pgd:eps=0.2").run(classifier, clean, labels[1400:1500])
for name, batch in (("clean", clean), ("attacked", attacked)):
    with torch.no_grad():
        logits, score, p_value, flag = guard(batch)
    served = logits.argmax(1)[~flag]  # classes to act on; ask a person about the others
    print(f"{name}: {int(flag.sum())} of {len(batch)} flagged, {len(served)} served")
