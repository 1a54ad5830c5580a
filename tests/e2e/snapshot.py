"""Print, as JSON, what stands below some paths.

snapshot.py PATH...             all that any write to a file would change, its inode and times included
snapshot.py --content PATH...   what it is: mode, owner, and the digest of its bytes or its link
"""

import hashlib
import json
import os
import stat
import sys


def identity(path, info):
    link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
    return [
        oct(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_size,
        info.st_mtime_ns,
        info.st_ctime_ns,
        info.st_ino,
        link,
    ]


def content(path, info):
    if stat.S_ISLNK(info.st_mode):
        return ["link", os.readlink(path)]
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            return [oct(info.st_mode), info.st_uid, info.st_gid, hashlib.sha256(file.read()).hexdigest()]
    return [oct(info.st_mode), info.st_uid, info.st_gid]


def main():
    paths = sys.argv[1:]
    describe = identity
    if paths[0] == "--content":
        describe, paths = content, paths[1:]
    found = {}
    for top in paths:
        for place, directories, files in os.walk(top):
            for path in [place] + [os.path.join(place, name) for name in files + directories]:
                try:
                    found[path] = describe(path, os.lstat(path))
                except FileNotFoundError:  # gone since it was listed
                    continue
    json.dump(found, sys.stdout)


main()
