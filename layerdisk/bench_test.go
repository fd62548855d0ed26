package layerdisk_test

import (
	"strconv"
	"testing"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// manyImages have ten layers each, half of them shared by all.
func manyImages(n int) []layerdisktest.Image {
	images := make([]layerdisktest.Image, 0, n)
	for i := range n {
		img := layerdisktest.Image{Reference: "example.com/image:" + strconv.Itoa(i), WithIndex: true}
		for j := range 10 {
			name := "shared " + strconv.Itoa(j)
			if j >= 5 {
				name = strconv.Itoa(i) + "/" + strconv.Itoa(j)
			}
			img.Layers = append(img.Layers, name)
		}
		images = append(images, img)
	}
	return images
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(strconv.Itoa(n)+"_images", func(b *testing.B) {
			encoded, err := layerdisk.Seal(layerdisktest.Index(layerdisk.FileSystemEROFS, manyImages(n)...))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(encoded)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := layerdisk.Parse(encoded); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLookupChain costs the same whatever the disk holds.
func BenchmarkLookupChain(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(strconv.Itoa(n)+"_images", func(b *testing.B) {
			images := manyImages(n)
			l := layerdisk.NewLookup(layerdisktest.Index(layerdisk.FileSystemEROFS, images...))
			chainID := layerdisktest.ChainID(images[n-1].Layers...)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := l.Chain(chainID); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}
