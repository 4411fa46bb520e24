"""Short original texts in English, Japanese and Chinese on which bytes per token are reported.

Written for this project; about the same content in each language, so that the figures can be set side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENGLISH = """\
The mountain stands at the border, and for most of the year its upper slopes are hidden in cloud. Climbers who wait at
the foot learn to read small signs: the sound of the wind at night, the colour of the snow at dawn, the way the porters
pack their loads. When the sky finally opens, there are perhaps three days in which the summit can be reached.

A good expedition does not hurry. It sets up one camp after another, carries food and rope to each, and returns to rest
before going higher. In the notebook of the expedition leader, written in 1986, we read: "We turned back twice. Both
times we were sad for one evening and grateful for the rest of our lives."

Training a language model is not so different. You measure, you wait, you save your progress, and you keep a record of
what went wrong. If something explodes at step 40,000, you would like to know which layer it was, and you would like to
continue from step 39,500 and not from the beginning.
"""

_JAPANESE = """\
その山は国境にそびえ、一年のほとんどの間、上の斜面は雲に隠れている。ふもとで待つ登山者たちは、小さなしるしを読むことを
覚える。夜の風の音、明け方の雪の色、荷物をまとめるポーターの手つき。ようやく空が晴れると、頂上に立てるのはせいぜい三日間
だけである。

よい遠征隊は急がない。キャンプを一つずつ設け、食料とロープを運び上げ、いったん下りて休んでから、さらに高い所へ向かう。
一九八六年に書かれた隊長のノートにはこうある。「私たちは二度引き返した。二度とも一晩だけ悲しみ、そのあとは一生感謝している。」

言語モデルの学習もそれほど違わない。測り、待ち、途中経過を保存し、うまくいかなかったことを記録する。もし40,000ステップ目で
損失が発散したら、どの層が原因なのかを知りたいし、最初からではなく39,500ステップ目から再開したい。
"""

_CHINESE = """\
那座山耸立在边境上，一年中的大部分时间，山的上半部都藏在云里。在山脚等待的登山者学会了辨认细小的征兆：夜里的风声、黎明时雪的颜色、
背夫收拾行李的样子。等到天空终于放晴，能够登顶的日子大概只有三天。

好的登山队从不着急。他们一个接一个地建立营地，把食物和绳索运上去，再下来休息，然后才走向更高的地方。队长在一九八六年的笔记里写道：
“我们两次掉头返回。两次都难过了一个晚上，然后感激了一辈子。”

训练语言模型也没有太大的不同。要测量，要等待，要保存进度，还要记下哪里出了错。如果在第40,000步损失突然爆炸，你会想知道是哪一层出了
问题，也会想从第39,500步继续，而不是从头再来。
"""

SAMPLES: Mapping[str, str] = {"en": _ENGLISH, "ja": _JAPANESE, "zh": _CHINESE}
"""Language code to sample text."""
