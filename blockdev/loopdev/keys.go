package loopdev

func volumeKey(id string) string { return "volume " + id }

func snapshotKey(id string) string { return "snapshot " + id }
