package loopdev

func volumeKey(id string) string { return "volume " + id }

func volumeSnapshotKey(id string) string { return "volume snapshot " + id }
