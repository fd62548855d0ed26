package main

import (
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// TestCompletion: what a shell is offered, by the program that its script asks.
func TestCompletion(t *testing.T) {
	socket := start(t, &fakeDaemon{disks: twoDisks(), imageSnapshots: &fakeImageSnapshots{}})
	const (
		none  = cobra.ShellCompDirectiveNoFileComp
		files = cobra.ShellCompDirectiveDefault
	)
	for line, tc := range map[string]struct {
		offers    string
		directive cobra.ShellCompDirective
	}{
		"detach --socket SOCKET ":                     {"base late", none},
		"detach --socket SOCKET base ":                {"", none},
		"detach --socket SOCKETx ":                    {"", cobra.ShellCompDirectiveError},
		"image-snapshot get --socket SOCKET ":         {"nightly", none},
		"isnap update --socket SOCKET ":               {"nightly", none},
		"image-snapshot delete --socket SOCKET ":      {"nightly", none},
		"image-snapshot events --socket SOCKET ":      {"nightly", none},
		"image-snapshot access-list --socket SOCKET ": {"nightly", none},
		"image-snapshot create x --elimination ":      {"none lru", none},
		"image-snapshot create x --image ":            {"", none},
		"build --fs ":                                 {"erofs ext4", none},
		"build --output ":                             {"", files},
		"build --hosts-dir ":                          {"", cobra.ShellCompDirectiveFilterDirs},
		"build -o x ":                                 {"", files},
		"match --order ":                              {"saved size quantity degree", none},
		"csi-loop --without ":                         {"publish stage readonly snapshots list get", none},
		"inspect ":                                    {"", files},
		"verify ":                                     {"", files},
		"attach ":                                     {"", files},
		"attach --image-snapshot --socket SOCKET ":    {"nightly", none},
		"attach --driver ":                            {"", none},
		"catalog add --directory x ":                  {"", files},
		"status ":                                     {"", none},
	} {
		words := strings.Split(strings.ReplaceAll(line, "SOCKET", socket), " ")
		out, err := berth(t, append([]string{cobra.ShellCompNoDescRequestCmd}, words...)...)
		require.NoError(t, err, line)
		offers, directive, ok := strings.Cut(out, ":")
		require.True(t, ok, out)
		require.Equal(t, tc.offers, strings.Join(strings.Fields(offers), " "), line)
		require.Equal(t, strconv.Itoa(int(tc.directive)), strings.TrimSpace(directive), line)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, err := berth(t, "completion", shell)
		require.NoError(t, err)
		require.Contains(t, out, "__complete", shell)
	}
}
