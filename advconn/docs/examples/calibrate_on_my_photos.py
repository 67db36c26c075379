"""A threshold for your own pictures: clean ones alone, another false-alarm rate, no new fit.

python calibrate_on_my_photos.py
"""

from advconn.bundle import default, load, save
from advconn.data.conditions import CONDITIONS
from advconn.data.datasets import digits
from advconn.detector.recalibration import recalibrate

detector = load(default("digits"))
images, labels = digits()
mine = CONDITIONS["noise2"](images[1000:1500], 0)  # yours: detector.read(folder)
unseen = CONDITIONS["noise2"](images[1500:], 1)

own, efficacy = recalibrate(detector, mine, labels[1000:1500], fpr=0.1, confidence=None, conditions=("clean", "jpeg75"))
for name, made in (("as it ships", detector), ("calibrated on mine", own)):
    share, asked = made.judge(unseen).adversarial.mean(), made.calibration_.fpr
    print(f"{name}: {share:.1%} of unseen clean images flagged, {asked:.0%} asked for")
print(efficacy)
print(save(own, "detector-of-mine"))
