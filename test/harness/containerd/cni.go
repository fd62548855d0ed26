package containerd

import (
	"fmt"
	"os"
	"path/filepath"
)

// NullPlugin is a network plugin that does nothing and reports an address, for pods that must have a network namespace
// of their own and never use it: nothing is left on the host. It also stands for the loopback plugin.
const NullPlugin = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD|CHECK) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.2/32","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
`

// NullNetwork is the configuration of a network of that plugin, which it calls "null".
const NullNetwork = `{"cniVersion":"1.0.0","name":"null","plugins":[{"type":"null"}]}
`

// writeNullNetwork puts configuration and plugin into their directories. These must differ: a file named as the network
// beside its configuration is taken for a directory of plugin configurations.
func writeNullNetwork(confDir, binDir string) error {
	for _, name := range []string{"null", "loopback"} {
		if err := os.WriteFile(filepath.Join(binDir, name), []byte(NullPlugin), 0o755); err != nil { //nolint:gosec // a program
			return fmt.Errorf("write network plugin: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(confDir, "10-null.conflist"), []byte(NullNetwork), 0o600); err != nil {
		return fmt.Errorf("write network configuration: %w", err)
	}
	return nil
}
