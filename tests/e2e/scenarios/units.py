"""Each unit's exposure, as each Debian's systemd counts it offline, and a reason for each point that stays open.

Nothing is booted.
"""

import glob
import json
import os
import re
import shutil

from machine import DEBIANS, HERE

UNITS = os.path.join(HERE, "../../units")
# What makes the machine what it shall be cannot be as closed as the rest.
LIMIT = 2.0
OWN = {"larder.service": 3.9, "larder-network.service": 2.3}
# Whose open points have their reasons beside them.
EXPLAINED = ("larder.service", "larder-network.service", "larder-access.service")


def run(t):
    for suite in DEBIANS:
        with t.part(suite):
            one(t, t.lab(suite))


def one(t, lab):
    services = sorted(map(os.path.basename, glob.glob(f"{UNITS}/*.service")))
    folder = os.path.join(lab.directory, "units")
    shutil.copytree(UNITS, folder)
    measure = """
        for unit in /mnt/units/*.service; do
            systemd-analyze security --no-pager --offline=true "$unit" 2>/dev/null | grep 'exposure level'
            systemd-analyze security --no-pager --offline=true --json=short "$unit" 2>/dev/null
        done"""
    answers = lab("gwroot", lab.image, "sh", "-c", measure).splitlines()
    exposures = {}
    for name, level, points in zip(services, answers[::2], answers[1::2], strict=True):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            text = file.read()
        level = float(re.search(r": ([0-9.]+) ", level).group(1))
        exposures[name] = level
        limit = OWN.get(name, LIMIT)
        t.check(f"{name}: exposure {level}, at most {limit}", level <= limit, True)
        if name in EXPLAINED:
            reasons = re.findall(r"^# (\S+=\S*): \S+", text, re.M)
            opened = [point["name"] for point in json.loads(points) if point["set"] is False and point["exposure"]]
            t.check(f"{name}: points that are open", bool(opened), True)
            t.check(f"{name}: open points without a reason", [name for name in opened if name not in reasons], [])
    t.note(", ".join(f"{name} {level}" for name, level in exposures.items()))
