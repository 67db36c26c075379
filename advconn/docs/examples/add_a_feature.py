"""A feature of your own beside advconn's: does it add anything? Both are columns of the same head.

python add_a_feature.py
"""

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from advconn.attacks import Attack
from advconn.bundle import default, load
from advconn.cascade import default_head
from advconn.data.datasets import digits
from advconn.features import Connectivity

classifier = load(default("digits")).classifier
images, labels = digits()
clean = images[1000:1300].float() / 255
attacked = Attack.parse("pgd:eps=0.1").run(classifier, clean, labels[1000:1300])
kinds, pair = np.repeat([0, 1], len(clean)), np.tile(np.arange(len(clean)), 2)


def total_variation(batch):
    """Mean absolute difference of neighbours, (n, 1)."""
    across, down = batch.diff(dim=3).abs().mean((1, 2, 3)), batch.diff(dim=2).abs().mean((1, 2, 3))
    return (across + down)[:, None].numpy()


connectivity = Connectivity(classifier, families=("query", "self"))
walked = np.concatenate([connectivity.transform(batch) for batch in (clean, attacked)])
mine = np.concatenate([total_variation(batch) for batch in (clean, attacked)])
folds = [(np.flatnonzero(pair % 3 != k), np.flatnonzero(pair % 3 == k)) for k in range(3)]  # by image, never by row
for name, table in (("advconn's", walked), ("mine", mine), ("both", np.hstack([walked, mine]))):
    odds = cross_val_predict(default_head(0), table, kinds, cv=folds, method="decision_function")
    print(f"{name}: AUROC {roc_auc_score(kinds, odds):.3f}")
