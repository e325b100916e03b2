# Clients whose only credentials are those that AWS's SDK for Ruby finds, for
# `cargo xtask clients`.
#
#   ruby client.rb ruby COUNT    for each line of its input, each client signs one request

require "aws-sdk-core"

$stdout.sync = true
clients = Array.new(Integer(ARGV[1])) { { service: nil } }
turn = 0
while $stdin.gets
  forget = turn > 0
  turn += 1
  ends = clients.map do |client|
    Thread.new do
      client[:service] ||= Aws::STS::Client.new(endpoint: ENV.fetch("KIAM_STS_URL"))
      client[:service].config.credentials.refresh! if forget
      client[:service].get_caller_identity
      nil
    rescue StandardError, LoadError => e
      "#{e.class}: #{e.message}".split.join(" ")
    end
  end
  failed = ends.map(&:value).compact
  puts "done #{ends.size - failed.size} #{failed.first}"
end
