"""python -m advconn.cli"""

from advconn.cli import main

main()
