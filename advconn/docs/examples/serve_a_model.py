"""A served model with a gate before it: a client sends a picture, and gets a verdict with the prediction.

python serve_a_model.py        # needs advconn[serve]
"""

import io
import json
import subprocess
import sys
import urllib.request

from PIL import Image

from advconn.data.datasets import digits

server = subprocess.Popen(
    [sys.executable, "-m", "advconn", "serve", "--detector", "digits", "--name", "digits", "--port", "0"],
    stderr=subprocess.PIPE,
    text=True,
)
try:
    address = next(line for line in server.stderr if "serving" in line).split(" on ")[1].split()[0].rstrip(";:,")
    picture = io.BytesIO()
    Image.fromarray(digits()[0][1600, 0].numpy()).save(picture, "PNG")
    request = urllib.request.Request(f"{address}/score", picture.getvalue(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        (record,) = json.load(answer)
    print(f"{record['class_name']}: adversarial {record['adversarial']}, p {record['p_value']:.3f}, {record['why']}")
finally:
    server.terminate()
    server.wait(30)
