"""`vexpress index`: mistakes are found before a folder is made."""

import pytest

from vexpress.cli import index
from vexpress.errors import InputError


def test_mistakes_leave_no_folder(tmp_path):
    with pytest.raises(InputError, match="^meta_path=.*: no such file$"):
        index.main(["--meta_path", str(tmp_path / "none.json"), "--shards_dir", str(tmp_path / "shards")])
    with pytest.raises(InputError, match="^shard_mib=256: has no effect without shards_dir; leave it out$"):
        index.main(["--meta_path", "a.json", "--save_path", str(tmp_path / "a.parquet"), "--shard_mib", "256"])
    assert not any(tmp_path.iterdir())
