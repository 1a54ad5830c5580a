"""workload.py by itself: no registry, no machine. `python3 -m unittest discover tests/e2e`."""

import collections
import hashlib
import os
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import workload
from workload import Catalogue, Image, lru


def image(name, *blobs):
    return Image(name, f"manifest of {name}", tuple(blobs), 1)


class Simulation(unittest.TestCase):
    # Each image: a block for its blob, a block for its manifest.
    A, B, C = (image(name, (f"blob of {name}", 4096)) for name in "abc")

    def test_what_fits_is_fetched_once(self):
        self.assertEqual(lru([self.A, self.B, self.A, self.B], 4 * 4096), 0.5)

    def test_what_was_used_longest_ago_goes(self):
        trace = [self.A, self.B, self.A, self.C, self.A, self.B]
        self.assertEqual(lru(trace, 4 * 4096), 2 / 6)

    def test_a_shared_blob_counts_once_and_stays_with_its_last_holder(self):
        base = ("base", 10 * 4096)
        one, two = image("one", base), image("two", base)
        self.assertEqual(lru([one, two, one, two], 12 * 4096), 0.5)
        self.assertEqual(lru([one, two, one, two], 11 * 4096), 0)

    def test_folders_take_room_too(self):
        self.assertEqual(lru([self.A, self.B] * 2, 4 * 4096, per_image=1), 0)
        self.assertEqual(lru([self.A, self.B] * 2, 4 * 4096, per_blob=1), 0)


class Made(unittest.TestCase):
    def catalogue(self, seed):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        return Catalogue(seed, 50, 1 << 20, place.name)

    def test_a_seed_says_all(self):
        one, two, other = (self.catalogue(seed) for seed in (1, 1, 2))
        self.assertEqual(one.images, two.images)
        self.assertEqual(one.trace(1, 200), two.trace(1, 200))
        self.assertNotEqual(one.images, other.images)
        self.assertNotEqual(one.trace(1, 200), one.trace(2, 200))

    def test_data_is_what_its_name_says_and_as_much_as_asked_for(self):
        catalogue = self.catalogue(1)
        blobs = dict(blob for image in catalogue.images for blob in image.blobs)
        for digest, size in blobs.items():
            with open(f"{catalogue.store}/{workload.V2}/blobs/sha256/{digest[7:9]}/{digest[7:]}/data", "rb") as file:
                data = file.read()
            self.assertEqual((len(data), hashlib.sha256(data).hexdigest()), (size, digest[7:]))
        self.assertAlmostEqual(sum(blobs.values()) / (1 << 20), 0.88, delta=0.1)

    def test_the_most_popular_image_is_pulled_as_often_as_zipf_says(self):
        catalogue = self.catalogue(1)
        trace = catalogue.trace(1, 20000, exponent=1)
        counts = sorted(collections.Counter(image.name for image in trace).values(), reverse=True)
        whole = sum(1 / rank for rank in range(1, 51))
        for rank in (1, 2, 5, 10):
            self.assertAlmostEqual(counts[rank - 1] / 20000, 1 / rank / whole, delta=0.01)

    def test_a_broken_promise_is_named(self):
        report = {"problems": [], "failed": {}, "budget": 100, "peak": 105, "hit rate": 0.4}
        report |= {"lru of the mean fill": 0.45}
        self.assertEqual(workload.broken_promises(report), [])
        for key, value in [("problems", ["x"]), ("failed", {"GET 500": 1}), ("peak", 106), ("hit rate", 0.39)]:
            self.assertEqual(len(workload.broken_promises(report | {key: value})), 1, key)


if __name__ == "__main__":
    unittest.main()
