package dialect_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

// FuzzParse feeds lines of key=value. Whatever the annotations say, the answer is a request that the matcher accepts or
// an error of the class "bad request" that is short enough for an event, and the order of reading does not matter.
func FuzzParse(f *testing.F) {
	for _, d := range dialect.Builtin() {
		for _, k := range d.Keys {
			s := samples[k.Meaning]
			f.Add(d.Prefix + k.Name + "=" + s[0])
			f.Add(d.Prefix + k.Name + "=" + s[1])
		}
	}
	f.Add("eks.tke.cloud.tencent.com/use-image-cache=auto\nk8s.aliyun.com/eci-auto-imc=false")
	f.Add("cci.io/image-snapshot-specified-name=a\nimagecache.cce.io/specified-name=b\nberth.dev/snapshot=c\nberth.dev/x=y")
	index := matcher.NewIndex()
	f.Fuzz(func(t *testing.T, text string) {
		in := make(annotations)
		for line := range strings.SplitSeq(text, "\n") {
			key, value, _ := strings.Cut(line, "=")
			in[key] = value
		}
		r, warnings, err := parse(in)
		again, warningsAgain, errAgain := parse(in)
		require.Equal(t, r, again)
		require.Equal(t, warnings, warningsAgain)
		if err != nil {
			require.EqualError(t, errAgain, err.Error())
			require.True(t, errdefs.IsInvalidArgument(err))
			require.Zero(t, r)
			require.Less(t, len(err.Error()), 64<<10)
			require.True(t, utf8.ValidString(err.Error()))
			return
		}
		require.NoError(t, errAgain)
		require.LessOrEqual(t, len(warnings), 40)
		_, err = index.Match(matcher.Request{Images: []matcher.Image{{Reference: "docker.io/library/a:1"}}, Rules: r.Rules})
		require.NoError(t, err)
	})
}
