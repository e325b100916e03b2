// A client that knows nothing of credentials but what the SDK finds, for kiam's tests.
//
//	sdk who         prints who it is to STS, once
//	sdk contract    reads times, and prints for each the key that it would sign with
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
	_ "unsafe" // for linkname

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// The SDK's own clock, which its tests replace too.
//
//go:linkname sdkNow github.com/aws/aws-sdk-go-v2/internal/sdk.NowTime
var sdkNow func() time.Time

func main() {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fail(err)
	}
	switch os.Args[1] {
	case "who":
		who, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			fail(err)
		}
		fmt.Println(*who.Arn)
	case "contract":
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			seconds, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				fail(err)
			}
			now := time.Unix(seconds, 0)
			sdkNow = func() time.Time { return now }
			keys, err := cfg.Credentials.Retrieve(ctx)
			if err != nil {
				fmt.Println("error", err)
			} else {
				fmt.Println("key", keys.AccessKeyID)
			}
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
