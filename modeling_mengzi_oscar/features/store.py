"""`RegionFeatureStore`, the store that users see: a folder (`store_folder.py`), also of the Hub (`store_on_hub.py`)."""

from pathlib import Path

from .store_folder import RegionFeatureWriter, StoreFolder
from .store_on_hub import HUB_ID, StreamedRegionFeatureStore, download, push


class RegionFeatureStore(StoreFolder):
    __doc__ = StoreFolder.__doc__

    @staticmethod
    def open(path, revision=None, streaming=False):
        """The store of a folder, or of a dataset repo on the Hub that it was pushed to.

        Args:
            path: folder, or Hub id `org/name` or `org/name@revision`; a folder of that name goes first.
            revision: branch, tag or commit of the Hub id.
            streaming: download the index only, and read the rows that are asked for over HTTP.

        Raises:
            FileNotFoundError: there is no store of that name, here or there.
        """
        name = f"{path}@{revision}" if revision else str(path)
        if Path(path).exists() or not HUB_ID.fullmatch(name):
            return RegionFeatureStore(path)
        return StreamedRegionFeatureStore(name) if streaming else RegionFeatureStore(download(name))

    def push_to_hub(self, repo_id, private=None):
        """Upload as the folder `features` of a dataset repo; see `store_on_hub.push`."""
        return push(self, repo_id, private)

    @staticmethod
    def writer(
        path, dtype="float16", images_per_shard=512, worker="00000", region_model=None, labels=None, precision=None
    ):
        """A `RegionFeatureWriter`; see there."""
        return RegionFeatureWriter(path, dtype, images_per_shard, worker, region_model, labels, precision)
