# Removes a sandbox when its owner closes this script's input: in order, or by being killed.
#   $1 its cgroup   $2 the prefix of its network namespaces   $3 its scratch folder
trap '' INT TERM HUP QUIT PIPE
read -r _

tries=0
while [ -d "$1" ] && [ "$tries" -lt 200 ]; do
    echo 1 > "$1/cgroup.kill"
    find "$1" -depth -type d -exec rmdir {} +
    tries=$((tries + 1))
    [ -d "$1" ] && sleep 0.02 # the killed are still dying
done 2> /dev/null

for netns in /run/netns/"$2"*; do
    [ -e "$netns" ] && ip netns delete "${netns##*/}"
done 2> /dev/null

rm -rf -- "$3"
